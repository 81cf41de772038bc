//! Reading a clock of this kind from outside, as a host reads its own.

use super::Control;
use super::calendar::{Format, Registers};
use super::spec::{CENTURY, REGISTER_A, REGISTER_B, REGISTER_D, UPDATE_IN_PROGRESS, VALID};

/// Registers of date and time, in the order of [`Registers`].
const FIELDS: [u8; 8] = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY];
/// Reads of register A while an update lasts 2 ms, and a bound for a clock that does not exist.
const POLLS: u32 = 20_000;
/// Readings that have to agree come within so many.
const READINGS: u32 = 8;

/// The time a clock shows, in seconds since 1970, taken as UTC; `None` if it does not stand still long enough to be
/// read, or has lost its battery. `read` reads the register at an index.
pub fn unix_seconds(read: &mut dyn FnMut(u8) -> u8) -> Option<u64> {
    if read(REGISTER_D) & VALID == 0 {
        return None;
    }
    let mut last = None;
    for _ in 0..READINGS {
        (0..POLLS).find(|_| read(REGISTER_A) & UPDATE_IN_PROGRESS == 0)?;
        let now = FIELDS.map(&mut *read);
        if last == Some(now) {
            let control = Control::from_bits_truncate(read(REGISTER_B));
            let format = Format {
                binary: control.contains(Control::BINARY),
                hours_24: control.contains(Control::HOURS_24),
            };
            return seconds(now, format);
        }
        last = Some(now);
    }
    None
}

/// Machines without a century register have anything there; the years of this program are those from 2000 on.
fn seconds(mut fields: [u8; 8], format: Format) -> Option<u64> {
    let twenty = if format.binary { 20 } else { 0x20 };
    if fields[7] < twenty || fields[7] > twenty + 1 {
        fields[7] = twenty;
    }
    let (second, _) = Registers(fields).second(format);
    u64::try_from(second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtc::Rtc;
    use crate::time::GuestTime;

    /// 2026-11-22 08:00:00 UTC.
    const BASE: u64 = 1_795_334_400;

    fn read_at(rtc: &mut Rtc, now: GuestTime) -> Option<u64> {
        unix_seconds(&mut |index| {
            rtc.write_index(index);
            rtc.read(now)
        })
    }

    #[test]
    fn the_time_is_the_one_the_chip_shows() {
        let mut rtc = Rtc::new(BASE, 64 << 20, 0);
        assert_eq!(read_at(&mut rtc, GuestTime(100)), Some(BASE));
        let later = GuestTime(86_399_000_000_100);
        assert_eq!(read_at(&mut rtc, later), Some(BASE + 86_399));
    }

    #[test]
    fn no_clock_no_time() {
        assert_eq!(unix_seconds(&mut |_| 0xff), None);
        assert_eq!(unix_seconds(&mut |_| 0), None);
        let mut n = 0u8;
        let restless = unix_seconds(&mut |index| {
            n = n.wrapping_add(1);
            if index == REGISTER_D { VALID } else { n & 0x3f }
        });
        assert_eq!(restless, None);
    }

    #[test]
    fn a_missing_century_is_ours() {
        let bcd = Format {
            binary: false,
            hours_24: true,
        };
        let fields = [0x00, 0x00, 0x08, 1, 0x22, 0x11, 0x26, 0xff];
        assert_eq!(seconds(fields, bcd), Some(BASE));
    }
}
