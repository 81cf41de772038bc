//! The log of a guest: whatever the bytes, they are entries or they are refused, and there is one way to write an entry.

use vmm::log::header::Header;
use vmm::log::{DecodeError, Decoder, Encoder, Entry};
use vmm::replay::{Next, Replayer};

/// A log's header and its entries, decoded one by one and by a replay that gets them in pieces.
///
/// The first byte is the length of the pieces.
pub fn log(bytes: &[u8]) {
    let Some((&piece, bytes)) = bytes.split_first() else {
        return;
    };
    if let Ok((_, length)) = Header::decode(bytes) {
        assert!(length <= bytes.len());
    }
    let end = entries(bytes);
    replay(bytes, usize::from(piece) + 1, end);
}

/// Decodes all entries there are. Returns why the last bytes are none.
fn entries(bytes: &[u8]) -> DecodeError {
    let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
    let mut rest = bytes;
    loop {
        let before = decoder.clone();
        let (entry, length) = match decoder.next(rest) {
            Ok(decoded) => decoded,
            Err(error) => {
                assert_eq!(decoder, before);
                return error;
            }
        };
        let (these, behind) = rest.split_at(length);
        let mut again = Vec::new();
        match entry {
            Entry::Answer(answer) => encoder.answer(&mut again, answer),
            Entry::Placed(point, what) => encoder.placed(&mut again, point, &what),
        }
        assert_eq!(again, these);
        rest = behind;
    }
}

/// Lets a replay look at the same bytes, whose end is known.
fn replay(bytes: &[u8], piece: usize, end: DecodeError) {
    let mut replayer = Replayer::new();
    let mut pieces = bytes.chunks(piece);
    loop {
        match replayer.peek() {
            // Taken, unless there are answers before it: nobody has asked for them.
            Next::At(_) => match replayer.take() {
                Ok(taken) => assert!(taken.is_some()),
                Err(_) => return,
            },
            Next::Nothing => match pieces.next() {
                Some(piece) => assert_eq!(replayer.feed(piece), piece.len()),
                None => replayer.close(),
            },
            Next::End => return assert_eq!(end, DecodeError::Incomplete),
            Next::Damaged(error) => return assert!(error == end || error == DecodeError::NoPoint),
        }
    }
}
