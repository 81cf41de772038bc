//! The two handshake messages: Noise `NNpsk0` over X25519, ChaCha20-Poly1305 and BLAKE2s.
//!
//! The pair's secret authenticates both sides; the ephemeral keys give each session keys of its own
//! that the secret alone does not reveal. `psk0` mixes the secret in before the first message, so a
//! forged first message is refused without any curve arithmetic. Protocol version, pair and both
//! nodes, in their directions, are the prologue; boot, generation and compatibility record are the
//! payloads. Section numbers are those of the Noise specification, revision 34.

use alloc::boxed::Box;

use snow::{Builder, HandshakeState};
use zerocopy::IntoBytes;

use super::cipher::KEY_BYTES;
use super::entropy::{DRAW_BYTES, SeededResolver};
use crate::ids::{NodeId, PairId};
use crate::wire::messages::{GREETING_BYTES, GreetingRepr};
use crate::wire::{HEADER_BYTES, TAG_BYTES, VERSION};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const CURVE_POINT_BYTES: usize = 32;
const PROLOGUE_NAME: [u8; 11] = *b"duet ftlink";
const PROLOGUE_BYTES: usize = PROLOGUE_NAME.len() + 1 + 16 + 8 + 8;

/// Bytes of a handshake datagram; both messages have this length.
pub const HANDSHAKE_BYTES: usize = HEADER_BYTES + CURVE_POINT_BYTES + GREETING_BYTES + TAG_BYTES;

/// The secret both hosts of a pair share.
pub type PairSecret = [u8; 32];

/// A handshake that failed: the message is not from a holder of the pair's secret meant for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeFailed;

/// The keys a finished handshake gives, by direction.
pub(super) struct Keys {
    pub initiator_to_responder: [u8; KEY_BYTES],
    pub responder_to_initiator: [u8; KEY_BYTES],
}

/// Who talks to whom, and the secret.
pub(super) struct Parties<'a> {
    pub pair: PairId,
    pub initiator: NodeId,
    pub responder: NodeId,
    pub secret: &'a PairSecret,
}

impl Parties<'_> {
    fn prologue(&self) -> [u8; PROLOGUE_BYTES] {
        let mut prologue = [0; PROLOGUE_BYTES];
        let (name, rest) = prologue.split_at_mut(PROLOGUE_NAME.len());
        name.copy_from_slice(&PROLOGUE_NAME);
        rest[0] = VERSION;
        rest[1..17].copy_from_slice(&self.pair.0.to_le_bytes());
        rest[17..25].copy_from_slice(&self.initiator.0.to_le_bytes());
        rest[25..33].copy_from_slice(&self.responder.0.to_le_bytes());
        prologue
    }

    fn start(&self, seed: [u8; DRAW_BYTES], initiate: bool) -> Result<HandshakeState, snow::Error> {
        let prologue = self.prologue();
        let builder = Builder::with_resolver(PATTERN.parse()?, Box::new(SeededResolver { seed }))
            .prologue(&prologue)?
            .psk(0, self.secret)?;
        if initiate {
            builder.build_initiator()
        } else {
            builder.build_responder()
        }
    }
}

/// Our handshake, waiting for its reply.
pub(super) struct Initiation {
    state: HandshakeState,
}

impl Initiation {
    /// Writes the first message's body (behind the header) and keeps the state for the reply.
    pub fn begin(
        parties: &Parties<'_>,
        seed: [u8; DRAW_BYTES],
        greeting: &GreetingRepr<'_>,
        body: &mut [u8],
    ) -> Result<Self, HandshakeFailed> {
        let payload = greeting.greeting().map_err(|_| HandshakeFailed)?;
        let mut state = parties.start(seed, true).map_err(|_| HandshakeFailed)?;
        state
            .write_message(payload.as_bytes(), body)
            .map_err(|_| HandshakeFailed)?;
        Ok(Self { state })
    }

    /// Reads the reply's body; gives its payload and the keys. A failure leaves the handshake as it
    /// was (snow rolls its transcript back), so that a forged reply cannot end it.
    pub fn finish(
        &mut self,
        body: &[u8],
        payload: &mut [u8; GREETING_BYTES],
    ) -> Result<Keys, HandshakeFailed> {
        read(&mut self.state, body, payload)?;
        Ok(split(&mut self.state))
    }
}

/// Reads a first message and writes its reply's body.
pub(super) fn respond(
    parties: &Parties<'_>,
    seed: [u8; DRAW_BYTES],
    body: &[u8],
    payload: &mut [u8; GREETING_BYTES],
) -> Result<Response, HandshakeFailed> {
    let mut state = parties.start(seed, false).map_err(|_| HandshakeFailed)?;
    read(&mut state, body, payload)?;
    Ok(Response { state })
}

/// A first message that has been read; the curve arithmetic comes with the reply.
pub(super) struct Response {
    state: HandshakeState,
}

impl Response {
    /// Writes the second message's body.
    pub fn reply(
        mut self,
        greeting: &GreetingRepr<'_>,
        body: &mut [u8],
    ) -> Result<Keys, HandshakeFailed> {
        let payload = greeting.greeting().map_err(|_| HandshakeFailed)?;
        self.state
            .write_message(payload.as_bytes(), body)
            .map_err(|_| HandshakeFailed)?;
        Ok(split(&mut self.state))
    }
}

fn read(
    state: &mut HandshakeState,
    body: &[u8],
    payload: &mut [u8; GREETING_BYTES],
) -> Result<(), HandshakeFailed> {
    if body.len() != HANDSHAKE_BYTES - HEADER_BYTES {
        return Err(HandshakeFailed);
    }
    match state.read_message(body, payload) {
        Ok(GREETING_BYTES) => Ok(()),
        _ => Err(HandshakeFailed),
    }
}

fn split(state: &mut HandshakeState) -> Keys {
    let (initiator_to_responder, responder_to_initiator) = state.dangerously_get_raw_split();
    Keys {
        initiator_to_responder,
        responder_to_initiator,
    }
}
