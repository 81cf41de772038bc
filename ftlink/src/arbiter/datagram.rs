//! Requests and replies as authenticated datagrams of fixed size, for UDP: sealed with
//! XChaCha20-Poly1305 under the pair's witness key. What does not open is nobody's request.
//!
//! A repeated datagram does no harm: requests are idempotent and bound to a generation, replies to a
//! request. A nonce is never used twice: the sender's random part and a counter, or all random.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use core::fmt;

use super::codec::{
    Reader, Writer, ask_code, ask_from, outcome_code, outcome_from, state_code, state_from,
};
use super::{Member, Reply, Request, Summary};
use crate::ids::{Generation, PairId, RequestId};

/// Bytes of a request datagram.
pub const REQUEST_BYTES: usize = CLEAR_BYTES + REQUEST_BODY + TAG_BYTES;
/// Bytes of a reply datagram.
pub const REPLY_BYTES: usize = CLEAR_BYTES + REPLY_BODY + TAG_BYTES;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"DUTW";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const TAG_BYTES: usize = 16;
// Magic, version, kind, two zero bytes, pair, nonce.
const CLEAR_BYTES: usize = 8 + 16 + NONCE_BYTES;
// Member, id, generation, ask with flags, member.
const REQUEST_BODY: usize = 24 + 8 + 8 + 8 + 24;
// Member, id, outcome with state and flags, granted generation, generation, owner, backup.
const REPLY_BODY: usize = 24 + 8 + 8 + 8 + 8 + 24 + 24;

const HAS_MEMBER: u8 = 1;
const HAS_RECORD: u8 = 1;
const HAS_OWNER: u8 = 2;
const HAS_BACKUP: u8 = 4;

/// Why a datagram was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramError {
    /// Not of the size, magic or kind expected.
    Shape,
    /// Another version of this format.
    Version(u8),
    /// Not sealed with this key, or changed on the way.
    Authentication,
    /// Authentic, with a value that is never written.
    Field(&'static str),
}

impl fmt::Display for DatagramError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatagramError::Shape => formatter.write_str("not an arbiter datagram"),
            DatagramError::Version(version) => {
                write!(formatter, "arbiter datagram of version {version}")
            }
            DatagramError::Authentication => formatter.write_str("not authentic"),
            DatagramError::Field(field) => write!(formatter, "impossible value in {field}"),
        }
    }
}

impl core::error::Error for DatagramError {}

/// The key a pair shares with its witness; it is not the key of the link.
#[derive(Clone)]
pub struct Key(XChaCha20Poly1305);

impl Key {
    /// A key from its bytes.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        Self(XChaCha20Poly1305::new(bytes.into()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(..)")
    }
}

/// The nonces of one boot: its random id and a counter.
#[derive(Clone, Debug)]
pub struct Nonces {
    random: u128,
    next: u64,
}

impl Nonces {
    /// Nonces that begin with 16 random bytes drawn at this boot.
    #[must_use]
    pub const fn new(random: u128) -> Self {
        Self { random, next: 0 }
    }

    /// The next one.
    pub fn take(&mut self) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..16].copy_from_slice(&self.random.to_le_bytes());
        nonce[16..].copy_from_slice(&self.next.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        nonce
    }
}

/// The pair a datagram claims to be about, for the choice of the key.
///
/// # Errors
///
/// It is not an arbiter request of this version.
pub fn request_pair(datagram: &[u8]) -> Result<PairId, DatagramError> {
    clear(datagram, REQUEST, REQUEST_BYTES)
}

/// Seals a request.
#[must_use]
pub fn seal_request(
    key: &Key,
    nonce: [u8; NONCE_BYTES],
    pair: PairId,
    request: &Request,
) -> [u8; REQUEST_BYTES] {
    let Request {
        id,
        from,
        generation,
        ask,
    } = request;
    let mut datagram = [0; REQUEST_BYTES];
    let (ask, member) = ask_code(*ask);
    let mut writer = Writer::new(&mut datagram[CLEAR_BYTES..CLEAR_BYTES + REQUEST_BODY]);
    writer.member(Some(*from));
    writer.u64(id.0);
    writer.u64(generation.0);
    writer.u8(ask);
    writer.u8(if member.is_some() { HAS_MEMBER } else { 0 });
    writer.skip(6);
    writer.member(member);
    seal(key, &mut datagram, REQUEST, pair, nonce);
    datagram
}

/// Opens a request.
///
/// # Errors
///
/// It is not a request, not authentic, or holds an impossible value.
pub fn open_request(key: &Key, datagram: &[u8]) -> Result<(PairId, Request), DatagramError> {
    let pair = clear(datagram, REQUEST, REQUEST_BYTES)?;
    let body: [u8; REQUEST_BODY] = open(key, datagram)?;
    let mut reader = Reader::new(&body);
    let from = reader.member();
    let id = RequestId(reader.u64());
    let generation = Generation(reader.u64());
    let ask = reader.u8();
    let flags = reader.u8();
    reader.array::<6>();
    let member = reader.member();
    let member = (flags & HAS_MEMBER != 0).then_some(member);
    let ask = ask_from(ask, member).ok_or(DatagramError::Field("ask"))?;
    let request = Request {
        id,
        from,
        generation,
        ask,
    };
    Ok((pair, request))
}

/// Seals a reply.
#[must_use]
pub fn seal_reply(
    key: &Key,
    nonce: [u8; NONCE_BYTES],
    pair: PairId,
    reply: &Reply,
) -> [u8; REPLY_BYTES] {
    let Reply {
        id,
        to,
        outcome,
        record,
    } = reply;
    let mut datagram = [0; REPLY_BYTES];
    let (kind, reason, granted) = outcome_code(*outcome);
    let mut writer = Writer::new(&mut datagram[CLEAR_BYTES..CLEAR_BYTES + REPLY_BODY]);
    writer.member(Some(*to));
    writer.u64(id.0);
    writer.u8(kind);
    writer.u8(reason);
    writer.u8(record.map_or(0, |record| state_code(record.state)));
    let owner = record.and_then(|record| record.owner);
    let backup = record.and_then(|record| record.backup);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    writer.u8(flag(record.is_some(), HAS_RECORD)
        | flag(owner.is_some(), HAS_OWNER)
        | flag(backup.is_some(), HAS_BACKUP));
    writer.skip(4);
    writer.u64(granted);
    writer.u64(record.map_or(0, |record| record.generation.0));
    writer.member(owner);
    writer.member(backup);
    seal(key, &mut datagram, REPLY, pair, nonce);
    datagram
}

/// Opens a reply.
///
/// # Errors
///
/// It is not a reply, not authentic, or holds an impossible value.
pub fn open_reply(key: &Key, datagram: &[u8]) -> Result<(PairId, Reply), DatagramError> {
    let pair = clear(datagram, REPLY, REPLY_BYTES)?;
    let body: [u8; REPLY_BODY] = open(key, datagram)?;
    let mut reader = Reader::new(&body);
    let to = reader.member();
    let id = RequestId(reader.u64());
    let [kind, reason, state, flags] = reader.array();
    reader.array::<4>();
    let granted = reader.u64();
    let outcome = outcome_from(kind, reason, granted).ok_or(DatagramError::Field("outcome"))?;
    let generation = Generation(reader.u64());
    let owner = member_if(&mut reader, flags & HAS_OWNER != 0);
    let backup = member_if(&mut reader, flags & HAS_BACKUP != 0);
    let record = match flags & HAS_RECORD {
        0 => None,
        _ => Some(Summary {
            generation,
            state: state_from(state).ok_or(DatagramError::Field("state"))?,
            owner,
            backup,
        }),
    };
    let reply = Reply {
        id,
        to,
        outcome,
        record,
    };
    Ok((pair, reply))
}

fn member_if(reader: &mut Reader<'_>, present: bool) -> Option<Member> {
    let member = reader.member();
    present.then_some(member)
}

fn clear(datagram: &[u8], kind: u8, length: usize) -> Result<PairId, DatagramError> {
    let mut reader = Reader::new(datagram);
    let magic: [u8; 4] = reader.array();
    let [version, found, reserved, zero] = reader.array();
    if magic != MAGIC || datagram.len() < CLEAR_BYTES {
        return Err(DatagramError::Shape);
    }
    if version != VERSION {
        return Err(DatagramError::Version(version));
    }
    if found != kind || datagram.len() != length || reserved != 0 || zero != 0 {
        return Err(DatagramError::Shape);
    }
    Ok(PairId(reader.u128()))
}

/// Writes the clear part and seals what is between it and the tag.
fn seal(key: &Key, datagram: &mut [u8], kind: u8, pair: PairId, nonce: [u8; NONCE_BYTES]) {
    let (clear, rest) = datagram.split_at_mut(CLEAR_BYTES);
    let mut writer = Writer::new(clear);
    writer.put(&MAGIC);
    writer.put(&[VERSION, kind, 0, 0]);
    writer.u128(pair.0);
    writer.put(&nonce);
    let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
    let sealed =
        key.0
            .encrypt_inout_detached(&XNonce::from(nonce), clear, InOutBuf::from(&mut *body));
    match sealed {
        Ok(made) => tag.copy_from_slice(&made),
        // Only bodies beyond 256 GiB fail; without a tag nobody takes the datagram.
        Err(_) => body.fill(0),
    }
}

fn open<const BODY: usize>(key: &Key, datagram: &[u8]) -> Result<[u8; BODY], DatagramError> {
    let (clear, rest) = datagram
        .split_at_checked(CLEAR_BYTES)
        .ok_or(DatagramError::Shape)?;
    let (sealed, tag) = rest.split_at_checked(BODY).ok_or(DatagramError::Shape)?;
    let mut body = [0; BODY];
    body.copy_from_slice(sealed);
    let mut nonce = [0; NONCE_BYTES];
    nonce.copy_from_slice(&clear[CLEAR_BYTES - NONCE_BYTES..]);
    let tag: [u8; TAG_BYTES] = tag.try_into().map_err(|_| DatagramError::Shape)?;
    key.0
        .decrypt_inout_detached(
            &XNonce::from(nonce),
            clear,
            InOutBuf::from(&mut body[..]),
            &tag.into(),
        )
        .map_err(|_| DatagramError::Authentication)?;
    Ok(body)
}
