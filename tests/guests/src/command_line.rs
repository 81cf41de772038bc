//! `key=value` words on the command line.

use crate::multiboot;

/// The value of `key`, if the word is there.
pub fn text(key: &str) -> Option<&'static str> {
    multiboot::command_line()
        .split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The value of `key` as a decimal number, or `default`.
pub fn number(key: &str, default: u64) -> u64 {
    text(key)
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}
