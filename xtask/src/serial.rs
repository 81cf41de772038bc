//! Reads what the host says on its serial port.

/// The text of a line without time and level (`[    0.123456] INFO  text`).
#[must_use]
pub fn message(line: &str) -> &str {
    let line = line.trim_end();
    let Some((time, rest)) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) else {
        return line;
    };
    if !time.trim().starts_with(|c: char| c.is_ascii_digit()) {
        return line;
    }
    let mut words = rest.splitn(2, ' ');
    match words.next() {
        Some("ERROR" | "WARN" | "INFO" | "DEBUG" | "TRACE") => {
            words.next().unwrap_or_default().trim_start()
        }
        _ => rest,
    }
}

/// Why the host stopped the guest `name`.
#[must_use]
pub fn stop_reason<'a>(serial: &'a str, name: &str) -> Option<&'a str> {
    let beginning = format!("vm {name}: stopped: ");
    serial
        .lines()
        .find_map(|line| message(line).strip_prefix(&beginning))
}

/// How the replays of the guest `name` ended.
pub fn replays<'a>(serial: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let beginning = format!("vm {name}: replayed: ");
    serial.lines().filter_map(move |line| {
        let rest = message(line).strip_prefix(&beginning)?;
        rest.rsplit_once(" (").map(|(end, _)| end)
    })
}

/// The lines that the guest `name` wrote to its debug console.
pub fn guest_lines<'a>(serial: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let beginning = format!("{name}| ");
    serial
        .lines()
        .filter_map(move |line| message(line).strip_prefix(&beginning))
}

/// The value of `key` in a line `kind| key=value key=value`.
#[must_use]
pub fn field<'a>(line: &'a str, kind: &str, key: &str) -> Option<&'a str> {
    let fields = message(line).strip_prefix(kind)?.strip_prefix("| ")?;
    fields
        .split(' ')
        .filter_map(|field| field.split_once('='))
        .find_map(|(name, value)| (name == key).then_some(value))
}

/// The last `count` lines.
#[must_use]
pub fn tail(serial: &str, count: usize) -> String {
    let lines: Vec<_> = serial.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIAL: &str = "[    0.100000] INFO  duet 0.1.0\r\n\
        hello| first\r\n\
        [    0.200000] INFO  hello| second\r\n\
        other| x\r\n\
        [    0.300000] INFO  vm hello: stopped: exit status 0\r\n\
        [    0.300001] INFO  exits| vm=hello reason=cpuid count=3 ticks=900\r\n\
        [not a time] x\r\n";

    #[test]
    fn lines_are_taken_apart() {
        let lines: Vec<_> = guest_lines(SERIAL, "hello").collect();
        assert_eq!(lines, ["first", "second"]);
        assert_eq!(stop_reason(SERIAL, "hello"), Some("exit status 0"));
        assert_eq!(stop_reason(SERIAL, "other"), None);
        assert_eq!(message("[not a time] x"), "[not a time] x");
    }

    #[test]
    fn fields_are_found_by_name() {
        let line = SERIAL.lines().nth(5).unwrap();
        assert_eq!(field(line, "exits", "vm"), Some("hello"));
        assert_eq!(field(line, "exits", "ticks"), Some("900"));
        assert_eq!(field(line, "exits", "none"), None);
        assert_eq!(field(line, "boot", "vm"), None);
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
