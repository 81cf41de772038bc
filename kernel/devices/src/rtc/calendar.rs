//! Date and time as the clock's registers show them.

/// The last second the clock can be set to at power-on: the end of the year 9999.
pub(super) const LAST_SECOND: i64 = 253_402_300_799;

const SECONDS_PER_DAY: i64 = 86_400;
/// 1970-01-01 was a Thursday, day 5 of a week that begins with Sunday as day 1.
const FIRST_WEEKDAY: i64 = 4;
/// Alarm bytes from this value on match everything.
const ANY: u8 = 0xc0;
/// Hours register in the 12-hour format: afternoon.
const PM: u8 = 0x80;

const SECOND: usize = 0;
const MINUTE: usize = 1;
const HOUR: usize = 2;
const WEEKDAY: usize = 3;
const DAY: usize = 4;
const MONTH: usize = 5;
const YEAR: usize = 6;
const CENTURY: usize = 7;

/// The place in [`Registers`] of the chip's register `index`.
pub(super) const fn field(index: u8) -> Option<usize> {
    match index {
        0x00 => Some(SECOND),
        0x02 => Some(MINUTE),
        0x04 => Some(HOUR),
        0x06 => Some(WEEKDAY),
        0x07 => Some(DAY),
        0x08 => Some(MONTH),
        0x09 => Some(YEAR),
        super::spec::CENTURY => Some(CENTURY),
        _ => None,
    }
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

impl Format {
    fn encode(self, value: i64) -> u8 {
        // All values are below 100.
        let value = value as u8;
        if self.binary {
            value
        } else {
            value / 10 * 16 + value % 10
        }
    }

    fn decode(self, byte: u8) -> i64 {
        if self.binary {
            i64::from(byte)
        } else {
            i64::from(byte >> 4) * 10 + i64::from(byte & 0xf)
        }
    }

    fn encode_hour(self, hour: i64) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(self, byte: u8) -> i64 {
        if self.hours_24 {
            return self.decode(byte);
        }
        let afternoon = if byte & PM != 0 { 12 } else { 0 };
        self.decode(byte & !PM) % 12 + afternoon
    }
}

/// Second, minute, hour, weekday, day, month, year, century, as the chip's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers(pub(super) [u8; 8]);

impl Registers {
    pub(super) fn at(second: i64, weekday_shift: u8, format: Format) -> Self {
        let days = second.div_euclid(SECONDS_PER_DAY);
        let time = second.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = date(days);
        let weekday = (days + FIRST_WEEKDAY + i64::from(weekday_shift)).rem_euclid(7) + 1;
        Self([
            format.encode(time % 60),
            format.encode(time / 60 % 60),
            format.encode_hour(time / 3600),
            format.encode(weekday),
            format.encode(day),
            format.encode(month),
            format.encode(year.rem_euclid(100)),
            format.encode(year.div_euclid(100).rem_euclid(100)),
        ])
    }

    /// The second the registers mean, and the weekday's lead over the calendar. Where a register holds what is no
    /// time, the nearest possible value stands for it.
    pub(super) fn second(self, format: Format) -> (i64, u8) {
        let field = |at: usize, least: i64, most: i64| format.decode(self.0[at]).clamp(least, most);
        let year = field(CENTURY, 0, 99) * 100 + field(YEAR, 0, 99);
        let month = field(MONTH, 1, 12);
        let days = day_number(year, month, field(DAY, 1, month_days(year, month)));
        let hour = format.decode_hour(self.0[HOUR]).clamp(0, 23);
        let time = hour * 3600 + field(MINUTE, 0, 59) * 60 + field(SECOND, 0, 59);
        let shift = (field(WEEKDAY, 1, 7) - 1 - days - FIRST_WEEKDAY).rem_euclid(7);
        // Between 0 and 6 by the remainder.
        (days * SECONDS_PER_DAY + time, shift as u8)
    }
}

/// Days from 1970-01-01 to a date. Years begin in March here, so that the leap day is their last.
const fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Five months from March, and again from August, have 153 days.
    365 * year + leap_days + (153 * months + 2) / 5 + day - 719_469
}

/// Year, month and day of a day counted from 1970-01-01.
const fn date(days: i64) -> (i64, i64, i64) {
    // A year too many or too few at first, by the mean length of 146 097 days in 400 years.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while day_number(year, 1, 1) > days {
        year -= 1;
    }
    while day_number(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 12;
    while day_number(year, month, 1) > days {
        month -= 1;
    }
    (year, month, days - day_number(year, month, 1) + 1)
}

const fn month_days(year: i64, month: i64) -> i64 {
    let (next_year, next) = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    day_number(next_year, next, 1) - day_number(year, month, 1)
}

/// A time of day in which each part can be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    hour: Option<i64>,
    minute: Option<i64>,
    second: Option<i64>,
}

impl Alarm {
    /// From the hour, minute and second alarm registers.
    pub(super) fn new([hour, minute, second]: [u8; 3], format: Format) -> Self {
        let part = |byte: u8| (byte < ANY).then(|| format.decode(byte));
        Self {
            hour: (hour < ANY).then(|| format.decode_hour(hour)),
            minute: part(minute),
            second: part(second),
        }
    }

    /// The first second behind `after` that matches; `None` if none ever does.
    pub(super) fn next_after(self, after: i64) -> Option<i64> {
        let from = after + 1;
        let first_hour = from.div_euclid(3600);
        // The hour of `from` may match only in part: it comes again at the end.
        (0..=24).find_map(|i| {
            let hour = first_hour + i;
            let matches = self.hour.is_none_or(|h| h == hour.rem_euclid(24));
            let earliest = if i == 0 { from.rem_euclid(3600) } else { 0 };
            let within = if matches {
                self.in_hour(earliest)
            } else {
                None
            };
            within.map(|second| hour * 3600 + second)
        })
    }

    /// The first matching second of an hour that is not before `earliest`.
    fn in_hour(self, earliest: i64) -> Option<i64> {
        let (first, second) = (earliest / 60, earliest % 60);
        // The first minute may match only in part: then it is the next one.
        [(first, second), (first + 1, 0)]
            .into_iter()
            .find_map(|(minute, second)| {
                let (minute, second) = match self.minute {
                    Some(wanted) if wanted > minute => (wanted, 0),
                    Some(wanted) if wanted < minute => return None,
                    _ => (minute, second),
                };
                let found = match self.second {
                    Some(wanted) => wanted,
                    None => second,
                };
                (minute < 60 && second <= found && found < 60).then_some(minute * 60 + found)
            })
    }
}
