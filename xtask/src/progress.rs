//! Long work under a line that says what is going on and for how long.

use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

/// All lines of work that goes on at the same time.
static LINES: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Runs a command whose output matters only when it fails; shows `what` while it runs.
///
/// # Errors
///
/// It cannot be started, or fails; then its output is part of the error.
pub fn quietly(what: &str, command: &mut Command) -> Result<()> {
    step(what, || {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = command
            .output()
            .with_context(|| format!("cannot start {name}"))?;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            bail!("{what} failed ({}):\n{}", output.status, text.trim_end());
        }
        Ok(())
    })
}

/// Shows `what` while `work` runs, and afterwards how long it took.
///
/// # Errors
///
/// Those of `work`.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = LINES.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let result = work();
    bar.finish_and_clear();
    if result.is_ok() && bar.elapsed() >= Duration::from_secs(1) {
        LINES.suspend(|| eprintln!("{what}: {}", HumanDuration(bar.elapsed())));
    }
    result
}
