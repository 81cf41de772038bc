//! The vendor choice: which back end runs the guests.

/// Runs all guests.
pub fn start() {
    log::info!("no back end yet");
}
