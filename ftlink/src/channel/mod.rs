//! The secure channel: who may speak. Handshakes make sessions, sessions seal and open datagrams.
//!
//! Three sessions at most exist side by side: the *current* one seals; the *previous* one still opens
//! what was under way when the keys changed; a *pending* one, made by answering a handshake, waits for
//! its first datagram, which proves that the initiator is alive and not a recording. So rekeying never
//! interrupts the stream, and a replayed first message replaces nothing.
//!
//! Nothing here changes before a datagram is authenticated, but its counter.

pub mod cipher;
pub mod entropy;
pub mod noise;
pub mod replay;

use zerocopy::IntoBytes;

use crate::counters::ChannelCounters;
use crate::ids::{BootId, Duration, Generation, Instant, NodeId, PairId};
use crate::wire::messages::{GREETING_BYTES, GreetingRepr, MAX_HELLO_BYTES};
use crate::wire::{HEADER_BYTES, HeaderRepr, Kind, PATHS, TAG_BYTES};

use cipher::DatagramCipher;
use entropy::Entropy;
use noise::{HANDSHAKE_BYTES, Initiation, Parties, Response};
use replay::ReplayWindow;

pub use noise::PairSecret;

/// First wait for the reply to a handshake.
pub const HANDSHAKE_RETRY: Duration = Duration::from_millis(50);
/// Longest wait for the reply to a handshake; also the longest round trip a link may have.
pub const HANDSHAKE_RETRY_MAX: Duration = Duration::from_millis(400);
/// A previous session opens datagrams for this long after the keys changed.
pub const PREVIOUS_SESSION_GRACE: Duration = Duration::from_secs(10);
/// Two handshakes that cross settle on the lower node's when they finish within this time.
pub const CROSSING_WINDOW: Duration = Duration::from_secs(1);
/// Replies that may fail to authenticate before the rest are ignored until the next attempt: each
/// costs curve arithmetic.
pub const REPLY_ATTEMPTS: u32 = 8;
/// Datagrams after which a session is replaced, whatever its age.
pub const REKEY_DATAGRAMS: u64 = 1 << 32;
/// Set in the ids of sessions the higher node initiates, so that two crossing handshakes never
/// choose the same id.
const HIGHER_NODE_SESSION: u32 = 1 << 31;
/// Boots of the peer that are known to have ended: a delayed or repeated datagram of one must not
/// bring it back. The oldest is forgotten first.
pub const DEAD_BOOTS: usize = 16;

/// What the channel is told at start.
#[derive(Clone)]
pub struct ChannelConfig {
    /// The pair.
    pub pair: PairId,
    /// This host.
    pub node: NodeId,
    /// The other host.
    pub peer: NodeId,
    /// This start of this host.
    pub boot: BootId,
    /// The secret both hosts share.
    pub secret: PairSecret,
    /// Randomness of this start; never used twice.
    pub seed: [u8; 32],
    /// Keys are replaced after this long.
    pub rekey_after: Duration,
    /// Paths in use, 1 to [`PATHS`].
    pub paths: u8,
}

/// Why a datagram was refused before its body was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not a datagram of this protocol.
    Malformed,
    /// No such session.
    UnknownSession,
    /// Seen before, or too old to tell.
    Replayed,
    /// Not sealed by the peer.
    Forged,
    /// A handshake that failed or is out of date.
    Handshake,
}

/// What an accepted datagram was.
#[derive(Debug)]
pub enum Opened<'a> {
    /// A sealed datagram of the peer.
    Body {
        /// Its header, authenticated.
        header: HeaderRepr,
        /// Its body.
        body: &'a [u8],
        /// The peer's boot changed with it: everything known of the old one is void.
        new_boot: bool,
    },
    /// Our handshake was answered; datagrams can be sealed.
    Established {
        /// As for a body.
        new_boot: bool,
    },
    /// The peer's first message is answered by the next [`Channel::egress`].
    Answering,
}

struct Session {
    id: u32,
    ours: bool,
    seal: DatagramCipher,
    open: DatagramCipher,
    window: ReplayWindow,
    since: Instant,
    sealed: u64,
    /// The number of the handshake that made it.
    number: u64,
    peer: Peer,
}

/// What a greeting said of the peer.
#[derive(Clone, PartialEq, Eq)]
struct Peer {
    boot: BootId,
    generation: Generation,
    hello: Hello,
}

/// An opaque record of at most [`MAX_HELLO_BYTES`].
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    bytes: [u8; MAX_HELLO_BYTES],
    len: usize,
}

impl Hello {
    /// A copy of `bytes`; `None` when they are too many.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut hello = Self {
            bytes: [0; MAX_HELLO_BYTES],
            len: bytes.len(),
        };
        hello.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(hello)
    }

    /// A copy of `bytes`, which are known to fit.
    #[must_use]
    pub fn of<const N: usize>(bytes: &[u8; N]) -> Self {
        const { assert!(N <= MAX_HELLO_BYTES) };
        let mut hello = Self {
            bytes: [0; MAX_HELLO_BYTES],
            len: N,
        };
        hello.bytes[..N].copy_from_slice(bytes);
        hello
    }

    /// The record.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct Attempt {
    initiation: Initiation,
    /// The first message's header; the reply repeats it.
    header: HeaderRepr,
    failures: u32,
}

/// The secure channel.
pub struct Channel {
    config: ChannelConfig,
    hello: Hello,
    entropy: Entropy,
    current: Option<Session>,
    previous: Option<Session>,
    pending: Option<Session>,
    attempt: Option<Attempt>,
    /// When the next first message goes out; `NEVER` while none is wanted.
    next_attempt: Instant,
    retry: Duration,
    attempts: u64,
    reply: Option<(u8, [u8; HANDSHAKE_BYTES])>,
    next_sequence: u64,
    /// Newest handshake number seen of the newest boot that sent one.
    newest_handshake: (BootId, u64),
    dead_boots: [Option<BootId>; DEAD_BOOTS],
    /// The attempt under way is there because the peer was silent, not to replace old keys.
    reviving: bool,
    counters: ChannelCounters,
}

impl Channel {
    /// A channel that begins with a handshake at once.
    #[must_use]
    pub fn new(config: ChannelConfig, hello: Hello) -> Self {
        Self {
            entropy: Entropy::new(config.seed),
            config,
            hello,
            current: None,
            previous: None,
            pending: None,
            attempt: None,
            next_attempt: Instant(0),
            retry: HANDSHAKE_RETRY,
            attempts: 0,
            reply: None,
            next_sequence: 1,
            newest_handshake: (BootId(0), 0),
            dead_boots: [None; DEAD_BOOTS],
            reviving: false,
            counters: ChannelCounters::default(),
        }
    }

    /// Everything refused so far.
    #[must_use]
    pub fn counters(&self) -> &ChannelCounters {
        &self.counters
    }

    /// Datagrams can be sealed.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.current.is_some()
    }

    /// A handshake is under way or due.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        self.next_attempt != Instant::NEVER
    }

    /// Since when the current session has been.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.current.as_ref().map(|session| session.since)
    }

    /// The peer's boot, once a session with it is established.
    #[must_use]
    pub fn peer_boot(&self) -> Option<BootId> {
        self.current.as_ref().map(|session| session.peer.boot)
    }

    /// The peer's generation as of the current session's handshake.
    #[must_use]
    pub fn peer_generation(&self) -> Option<Generation> {
        self.current.as_ref().map(|session| session.peer.generation)
    }

    /// The peer's compatibility record.
    #[must_use]
    pub fn peer_hello(&self) -> Option<&[u8]> {
        self.current
            .as_ref()
            .map(|session| session.peer.hello.as_bytes())
    }

    /// When [`egress`](Self::egress) next has something; `NEVER` if nothing is planned.
    #[must_use]
    pub fn poll_at(&self) -> Instant {
        if self.reply.is_some() {
            return Instant(0);
        }
        self.next_attempt.min(self.rekey_at())
    }

    /// When the keys are to be replaced. The lower node does it, so that handshakes do not cross.
    fn rekey_at(&self) -> Instant {
        match &self.current {
            Some(session)
                if self.config.node < self.config.peer && self.next_attempt == Instant::NEVER =>
            {
                if session.sealed >= REKEY_DATAGRAMS {
                    Instant(0)
                } else {
                    session.since.after(self.config.rekey_after)
                }
            }
            _ => Instant::NEVER,
        }
    }

    /// The peer has been silent under the current session: tries a new handshake beside it, again
    /// and again until either is answered.
    pub fn revive(&mut self, now: Instant) {
        if self.next_attempt == Instant::NEVER {
            self.retry = HANDSHAKE_RETRY;
            self.next_attempt = now;
            self.reviving = true;
        }
    }

    /// The peer has been heard under the current session: it needs no reviving.
    pub fn settle(&mut self) {
        if self.reviving {
            self.cancel_attempt();
        }
    }

    fn cancel_attempt(&mut self) {
        self.attempt = None;
        self.reviving = false;
        self.next_attempt = Instant::NEVER;
        self.retry = HANDSHAKE_RETRY;
    }

    /// Writes a handshake message into `datagram` if one is due on `path`; returns its length.
    pub fn egress(
        &mut self,
        now: Instant,
        path: u8,
        generation: Generation,
        datagram: &mut [u8],
    ) -> Option<usize> {
        let target = datagram.get_mut(..HANDSHAKE_BYTES)?;
        if let Some((_, reply)) = self.reply.take_if(|(reply_path, _)| *reply_path == path) {
            target.copy_from_slice(&reply);
            return Some(HANDSHAKE_BYTES);
        }
        let due = self.reply.is_none() && self.poll_at() <= now;
        let paths = usize::from(self.config.paths).clamp(1, PATHS);
        // Attempts take the paths in turn: each second one gets through when a path is cut.
        if !due || usize::from(path) != self.attempts as usize % paths {
            return None;
        }
        self.initiate(now, path, generation, target)
    }

    fn initiate(
        &mut self,
        now: Instant,
        path: u8,
        generation: Generation,
        datagram: &mut [u8],
    ) -> Option<usize> {
        self.attempts += 1;
        self.next_attempt = now.after(self.retry);
        self.retry = self.retry.times(2).min(HANDSHAKE_RETRY_MAX);
        let seed = self.entropy.draw();
        let [a, b, c, d, ..] = self.entropy.draw();
        let mut session = u32::from_le_bytes([a, b, c, d]) & !HIGHER_NODE_SESSION;
        if self.config.node > self.config.peer {
            session |= HIGHER_NODE_SESSION;
        }
        let header = HeaderRepr {
            kind: Kind::HANDSHAKE_INIT,
            path,
            flags: 0,
            session,
            generation,
            sequence: 0,
        };
        datagram[..HEADER_BYTES].copy_from_slice(header.header().as_bytes());
        let begun = Initiation::begin(
            &self.parties(true),
            seed,
            &self.greeting(&header, generation, self.attempts),
            &mut datagram[HEADER_BYTES..],
        );
        match begun {
            Ok(initiation) => {
                self.attempt = Some(Attempt {
                    initiation,
                    header,
                    failures: 0,
                });
                self.counters.handshakes_begun += 1;
                Some(HANDSHAKE_BYTES)
            }
            Err(_) => {
                self.counters.handshakes_failed += 1;
                None
            }
        }
    }

    fn parties(&self, ours: bool) -> Parties<'_> {
        let (initiator, responder) = if ours {
            (self.config.node, self.config.peer)
        } else {
            (self.config.peer, self.config.node)
        };
        Parties {
            pair: self.config.pair,
            initiator,
            responder,
            secret: &self.config.secret,
        }
    }

    fn greeting(
        &self,
        header: &HeaderRepr,
        generation: Generation,
        number: u64,
    ) -> GreetingRepr<'_> {
        GreetingRepr {
            node: self.config.node,
            boot: self.config.boot,
            generation,
            number,
            session: header.session,
            path: header.path,
            hello: self.hello.as_bytes(),
        }
    }

    /// Seals the body that lies in `datagram` behind room for the header, `body_bytes` long; returns
    /// the datagram's length. `None` without a session, or when the buffer has no room for the tag.
    pub fn seal(
        &mut self,
        kind: Kind,
        path: u8,
        flags: u8,
        generation: Generation,
        datagram: &mut [u8],
        body_bytes: usize,
    ) -> Option<(usize, u64)> {
        let session = self.current.as_mut()?;
        let total = HEADER_BYTES + body_bytes + TAG_BYTES;
        let datagram = datagram.get_mut(..total)?;
        let sequence = self.next_sequence;
        let header = HeaderRepr {
            kind,
            path,
            flags,
            session: session.id,
            generation,
            sequence,
        };
        datagram[..HEADER_BYTES].copy_from_slice(header.header().as_bytes());
        session.seal.seal(sequence, datagram);
        session.sealed += 1;
        self.next_sequence += 1;
        Some((total, sequence))
    }

    /// The sequence the next sealed datagram gets.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Opens a datagram in place.
    ///
    /// # Errors
    ///
    /// Why it was refused; the counter has been raised and nothing else has changed.
    pub fn open<'a>(
        &mut self,
        now: Instant,
        generation: Generation,
        datagram: &'a mut [u8],
    ) -> Result<Opened<'a>, Refused> {
        let Ok((header, _)) = HeaderRepr::parse(datagram) else {
            self.counters.malformed += 1;
            return Err(Refused::Malformed);
        };
        match header.kind {
            Kind::HANDSHAKE_INIT => self.on_handshake_init(now, &header, generation, datagram),
            Kind::HANDSHAKE_REPLY => self.on_handshake_reply(now, &header, datagram),
            _ => self.on_sealed(now, header, datagram),
        }
    }

    fn on_sealed<'a>(
        &mut self,
        now: Instant,
        header: HeaderRepr,
        datagram: &'a mut [u8],
    ) -> Result<Opened<'a>, Refused> {
        if self
            .previous
            .as_ref()
            .is_some_and(|session| now.since(session.since) > PREVIOUS_SESSION_GRACE)
        {
            self.previous = None;
        }
        let slots = [&mut self.current, &mut self.previous, &mut self.pending];
        let found = slots
            .into_iter()
            .filter_map(Option::as_mut)
            .find(|session| session.id == header.session);
        let Some(session) = found else {
            self.counters.unknown_session += 1;
            return Err(Refused::UnknownSession);
        };
        if !session.window.is_fresh(header.sequence) {
            self.counters.replayed += 1;
            return Err(Refused::Replayed);
        }
        let Ok(body) = session.open.open(header.sequence, datagram) else {
            self.counters.forged += 1;
            return Err(Refused::Forged);
        };
        session.window.accept(header.sequence);
        let confirmed = self.pending.take_if(|session| session.id == header.session);
        let new_boot = confirmed.is_some_and(|session| self.adopt(now, session));
        Ok(Opened::Body {
            header,
            body,
            new_boot,
        })
    }

    /// Makes a confirmed session the current one; says whether the peer's boot changed.
    fn adopt(&mut self, now: Instant, mut session: Session) -> bool {
        session.since = now;
        self.counters.sessions += 1;
        let old_boot = self.peer_boot();
        if old_boot == Some(session.peer.boot) {
            let crossed = !session.ours
                && self.config.node < self.config.peer
                && self.current.as_ref().is_some_and(|current| {
                    current.ours && now.since(current.since) < CROSSING_WINDOW
                });
            if crossed {
                self.previous = Some(session);
            } else {
                self.previous = self.current.replace(session);
                if let Some(previous) = &mut self.previous {
                    previous.since = now;
                }
            }
            self.cancel_attempt();
            return false;
        }
        if let Some(dead) = old_boot {
            self.dead_boots.rotate_right(1);
            self.dead_boots[0] = Some(dead);
        }
        let number = if session.ours { 0 } else { session.number };
        if self.newest_handshake.0 != session.peer.boot || self.newest_handshake.1 < number {
            self.newest_handshake = (session.peer.boot, number);
        }
        // A crossing handshake of the same new boot stays: the peer may settle on it.
        let boot = session.peer.boot;
        self.pending.take_if(|pending| pending.peer.boot != boot);
        self.current = Some(session);
        self.previous = None;
        self.cancel_attempt();
        true
    }

    fn on_handshake_init(
        &mut self,
        now: Instant,
        header: &HeaderRepr,
        generation: Generation,
        datagram: &[u8],
    ) -> Result<Opened<'static>, Refused> {
        match self.answer(now, header, generation, datagram) {
            Some(()) => Ok(Opened::Answering),
            None => {
                self.counters.handshakes_refused += 1;
                Err(Refused::Handshake)
            }
        }
    }

    fn answer(
        &mut self,
        now: Instant,
        header: &HeaderRepr,
        generation: Generation,
        datagram: &[u8],
    ) -> Option<()> {
        let peer_is_higher = self.config.peer > self.config.node;
        if (header.session & HIGHER_NODE_SESSION != 0) != peer_is_higher {
            return None;
        }
        let mut payload = [0; GREETING_BYTES];
        // A forged message must not advance the generator: the seed is drawn after the check.
        let response = noise::respond(
            &self.parties(false),
            self.entropy.peek(),
            &datagram[HEADER_BYTES..],
            &mut payload,
        )
        .ok()?;
        let greeting = GreetingRepr::parse(&payload).ok()?;
        let meant = self.is_meant(header, &greeting) && greeting.generation == header.generation;
        if !meant || !self.is_new_handshake(&greeting) {
            return None;
        }
        let peer = Peer {
            boot: greeting.boot,
            generation: greeting.generation,
            hello: Hello::new(greeting.hello)?,
        };
        self.reply_to(now, header, generation, response, peer, greeting.number)
    }

    /// The clear header says what the sealed greeting says, and it is our peer's.
    fn is_meant(&self, header: &HeaderRepr, greeting: &GreetingRepr<'_>) -> bool {
        greeting.node == self.config.peer
            && greeting.session == header.session
            && greeting.path == header.path
            && header.flags == 0
            && header.sequence == 0
            && !self.dead_boots.contains(&Some(greeting.boot))
    }

    /// A first message that was not used before, as far as this boot can know.
    fn is_new_handshake(&mut self, greeting: &GreetingRepr<'_>) -> bool {
        let (boot, number) = self.newest_handshake;
        if boot == greeting.boot {
            if number >= greeting.number {
                return false;
            }
        } else if self.peer_boot() == Some(boot) {
            // An unknown boot is answered, but the peer's place in memory is its own until the new
            // boot is confirmed.
            return true;
        }
        self.newest_handshake = (greeting.boot, greeting.number);
        true
    }

    fn reply_to(
        &mut self,
        now: Instant,
        header: &HeaderRepr,
        generation: Generation,
        response: Response,
        peer: Peer,
        number: u64,
    ) -> Option<()> {
        // The responder was built with this draw; step past it so that no other handshake is.
        self.entropy.draw();
        let mut reply = [0; HANDSHAKE_BYTES];
        let reply_header = HeaderRepr {
            kind: Kind::HANDSHAKE_REPLY,
            ..*header
        };
        reply[..HEADER_BYTES].copy_from_slice(reply_header.header().as_bytes());
        let greeting = self.greeting(&reply_header, generation, number);
        let keys = response.reply(&greeting, &mut reply[HEADER_BYTES..]).ok()?;
        self.pending = Some(Session {
            id: header.session,
            ours: false,
            seal: DatagramCipher::new(&keys.responder_to_initiator),
            open: DatagramCipher::new(&keys.initiator_to_responder),
            window: ReplayWindow::default(),
            since: now,
            sealed: 0,
            number,
            peer,
        });
        self.reply = Some((header.path, reply));
        self.counters.handshakes_answered += 1;
        Some(())
    }

    fn on_handshake_reply(
        &mut self,
        now: Instant,
        header: &HeaderRepr,
        datagram: &[u8],
    ) -> Result<Opened<'static>, Refused> {
        match self.finish(now, header, datagram) {
            Some(session) => {
                let new_boot = self.adopt(now, session);
                Ok(Opened::Established { new_boot })
            }
            None => {
                self.counters.handshakes_refused += 1;
                Err(Refused::Handshake)
            }
        }
    }

    fn finish(&mut self, now: Instant, header: &HeaderRepr, datagram: &[u8]) -> Option<Session> {
        let attempts = self.attempts;
        let attempt = self.attempt.as_mut()?;
        // The clear header is looked at before the message: reading that uses the handshake up.
        let expected = HeaderRepr {
            kind: Kind::HANDSHAKE_REPLY,
            ..attempt.header
        };
        if *header != expected || attempt.failures >= REPLY_ATTEMPTS {
            return None;
        }
        let mut payload = [0; GREETING_BYTES];
        let finished = attempt
            .initiation
            .finish(&datagram[HEADER_BYTES..], &mut payload);
        let Ok(keys) = finished else {
            attempt.failures += 1;
            return None;
        };
        let greeting = GreetingRepr::parse(&payload).ok()?;
        if !self.is_meant(header, &greeting) || greeting.number != attempts {
            return None;
        }
        Some(Session {
            id: header.session,
            ours: true,
            seal: DatagramCipher::new(&keys.initiator_to_responder),
            open: DatagramCipher::new(&keys.responder_to_initiator),
            window: ReplayWindow::default(),
            since: now,
            sealed: 0,
            number: attempts,
            peer: Peer {
                boot: greeting.boot,
                generation: greeting.generation,
                hello: Hello::new(greeting.hello)?,
            },
        })
    }
}

#[cfg(test)]
mod tests;
