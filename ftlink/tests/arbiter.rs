//! The arbiter's rules one by one, its stored record and its datagrams.

use ftlink::arbiter::codec::{RECORD_BYTES, RecordError};
use ftlink::arbiter::datagram::{
    DatagramError, Key, NONCE_BYTES, Nonces, open_reply, open_request, seal_reply, seal_request,
};
use ftlink::arbiter::{
    Ask, Denial, Member, Outcome, Record, RecordState, Refusal, Request, Verdict, decide, raised,
};
use ftlink::ids::{BootId, Generation, NodeId, PairId, RequestId};
use proptest::prelude::*;

const PAIR: PairId = PairId(7);
const A: Member = member(1, 1);
const A2: Member = member(1, 2);
const B: Member = member(2, 1);
const B2: Member = member(2, 2);

const fn member(node: u64, boot: u128) -> Member {
    Member {
        node: NodeId(node),
        boot: BootId(boot),
    }
}

/// A record that takes requests, each with the next id.
struct Arbiter {
    record: Record,
    next: u64,
}

impl Arbiter {
    fn new() -> Self {
        Self {
            record: Record::empty(PAIR, [NodeId(1), NodeId(2)]),
            next: 0,
        }
    }

    fn ask(&mut self, from: Member, generation: u64, ask: Ask) -> Outcome {
        self.next += 1;
        self.send(&Request {
            id: RequestId(self.next),
            from,
            generation: Generation(generation),
            ask,
        })
    }

    fn send(&mut self, request: &Request) -> Outcome {
        let decision = decide(&self.record, request);
        if let Some(record) = decision.store {
            self.record = record;
        }
        decision.reply.outcome
    }

    /// A runs with B as backup in generation 1.
    fn protected() -> Self {
        let mut arbiter = Self::new();
        assert_eq!(arbiter.ask(A, 0, Ask::Start { peer: None }), granted(1));
        assert_eq!(arbiter.ask(A, 1, Ask::Admit(B)), granted(1));
        arbiter
    }
}

fn granted(generation: u64) -> Outcome {
    Outcome::Verdict(Verdict::Granted(Generation(generation)))
}

fn denied(denial: Denial) -> Outcome {
    Outcome::Verdict(Verdict::Denied(denial))
}

#[test]
fn of_two_claims_in_one_generation_the_first_is_granted() {
    let mut arbiter = Arbiter::protected();
    assert_eq!(arbiter.ask(B, 1, Ask::Claim), granted(2));
    assert_eq!(arbiter.ask(A, 1, Ask::Claim), denied(Denial::Superseded));
    assert_eq!(arbiter.record.owner, Some(B));
    assert_eq!(arbiter.record.backup, None);
    assert_eq!(arbiter.ask(A, 2, Ask::Claim), denied(Denial::NotMember));
}

#[test]
fn a_retry_gets_the_same_answer_whatever_happened_since() {
    let mut arbiter = Arbiter::new();
    let start = Request {
        id: RequestId(1),
        from: A,
        generation: Generation(0),
        ask: Ask::Start { peer: None },
    };
    assert_eq!(arbiter.send(&start), granted(1));
    assert_eq!(arbiter.send(&start), granted(1));
    // Denied as a non-member, then admitted: the duplicate is still denied.
    let early = Request {
        id: RequestId(1),
        from: B,
        generation: Generation(1),
        ask: Ask::Claim,
    };
    assert_eq!(arbiter.send(&early), denied(Denial::NotMember));
    arbiter.next = 1;
    assert_eq!(arbiter.ask(A, 1, Ask::Admit(B)), granted(1));
    assert_eq!(arbiter.send(&early), denied(Denial::NotMember));
    assert_eq!(arbiter.ask(B, 1, Ask::Claim), granted(2));
    assert_eq!(arbiter.send(&early), Outcome::Refused(Refusal::Stale));
    assert_eq!(arbiter.record.owner, Some(B));
}

#[test]
fn only_the_owner_admits_and_a_taken_seat_is_not_given_twice() {
    let mut arbiter = Arbiter::protected();
    assert_eq!(arbiter.ask(B, 1, Ask::Admit(A)), denied(Denial::NotOwner));
    assert_eq!(arbiter.ask(A, 1, Ask::Admit(A2)), denied(Denial::NotOwner));
    assert_eq!(arbiter.ask(A, 1, Ask::Admit(B2)), denied(Denial::SeatTaken));
    assert_eq!(arbiter.ask(A, 1, Ask::Admit(B)), granted(1));
}

#[test]
fn a_lone_host_starts_only_what_is_off_and_two_cold_hosts_start_together() {
    let mut arbiter = Arbiter::protected();
    let lone = Ask::Start { peer: None };
    assert_eq!(arbiter.ask(A2, 1, lone), denied(Denial::StillRunning));
    // B is a living member: A2 cannot vouch for its death by naming it.
    let with_member = Ask::Start { peer: Some(B) };
    assert_eq!(
        arbiter.ask(A2, 1, with_member),
        denied(Denial::StillRunning)
    );
    let together = Ask::Start { peer: Some(B2) };
    assert_eq!(arbiter.ask(A2, 1, together), granted(2));
    assert_eq!(arbiter.ask(A2, 2, Ask::Stop), granted(2));
    assert_eq!(arbiter.record.state, RecordState::Stopped);
    assert_eq!(arbiter.ask(A2, 2, Ask::Claim), denied(Denial::NotRunning));
    assert_eq!(arbiter.ask(B2, 2, lone), granted(3));
}

#[test]
fn a_member_records_the_stop_and_others_do_not() {
    let mut arbiter = Arbiter::protected();
    assert_eq!(arbiter.ask(B2, 1, Ask::Stop), denied(Denial::NotMember));
    assert_eq!(arbiter.ask(B, 1, Ask::Stop), granted(1));
    assert_eq!(arbiter.record.state, RecordState::Stopped);
}

#[test]
fn a_record_behind_its_hosts_refuses_and_a_restored_one_waits_for_the_owner() {
    let mut arbiter = Arbiter::protected();
    assert_eq!(
        arbiter.ask(A, 9, Ask::Claim),
        Outcome::Refused(Refusal::Behind)
    );
    arbiter.record = Record::restored(PAIR, [NodeId(1), NodeId(2)], Generation(9), false);
    assert_eq!(
        arbiter.ask(A, 9, Ask::Claim),
        Outcome::Refused(Refusal::NoMembers)
    );
    let lone = Ask::Start { peer: None };
    assert_eq!(arbiter.ask(B2, 9, lone), denied(Denial::StillRunning));
    assert_eq!(
        arbiter.ask(A, 9, Ask::Adopt { backup: Some(B) }),
        granted(9)
    );
    assert_eq!(arbiter.ask(B, 9, Ask::Claim), granted(10));
}

#[test]
fn the_operators_word_outranks_the_record_once() {
    let mut arbiter = Arbiter::protected();
    let word = raised(Generation(1));
    assert_eq!(arbiter.ask(B, word.0, Ask::Raise), granted(word.0));
    assert_eq!(arbiter.ask(A, 1, Ask::Claim), denied(Denial::Superseded));
    assert_eq!(
        arbiter.ask(A, word.0, Ask::Raise),
        denied(Denial::Superseded)
    );
    assert_eq!(arbiter.ask(B, 2, Ask::Raise), denied(Denial::Superseded));
}

#[test]
fn a_foreign_node_is_refused() {
    let mut arbiter = Arbiter::protected();
    let foreign = arbiter.ask(member(3, 1), 1, Ask::Claim);
    assert_eq!(foreign, Outcome::Refused(Refusal::UnknownNode));
}

#[test]
fn a_stored_record_comes_back_and_any_flipped_bit_is_noticed() {
    let mut arbiter = Arbiter::protected();
    assert_eq!(arbiter.ask(A2, 1, Ask::Claim), denied(Denial::NotMember));
    let bytes = arbiter.record.encode();
    assert_eq!(Record::decode(&bytes), Ok(arbiter.record));
    for bit in 0..RECORD_BYTES * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::decode(&bad).is_err(), "bit {bit}");
    }
    let short = Record::decode(&bytes[..100]);
    assert_eq!(short, Err(RecordError::Length(100)));
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let peer = (1..3_u64, 1..4_u128).prop_map(|(node, boot)| member(node, boot));
    prop_oneof![
        Just(Ask::Query),
        Just(Ask::Claim),
        peer.clone().prop_map(Ask::Admit),
        Just(Ask::Stop),
        prop::option::of(peer.clone()).prop_map(|peer| Ask::Start { peer }),
        prop::option::of(peer).prop_map(|backup| Ask::Adopt { backup }),
        Just(Ask::Raise),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    (1..3_u64, 1..4_u128, 1..6_u64, 0..4_u64, any_ask()).prop_map(
        |(node, boot, id, generation, ask)| Request {
            id: RequestId(id),
            from: member(node, boot),
            generation: Generation(generation),
            ask,
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_asked_generations_grow_and_records_survive_storage(
        requests in prop::collection::vec(any_request(), 1..40),
    ) {
        let mut arbiter = Arbiter::new();
        for request in requests {
            let before = arbiter.record;
            let outcome = arbiter.send(&request);
            let after = arbiter.record;
            prop_assert!(after.generation >= before.generation);
            prop_assert_eq!(Record::decode(&after.encode()), Ok(after));
            if request.ask == Ask::Claim && after.generation > before.generation {
                prop_assert!(before.is_member(request.from));
            }
            // Asked again at once, the answer is the same and nothing changes.
            prop_assert_eq!(arbiter.send(&request), outcome);
            prop_assert_eq!(arbiter.record, after);
        }
    }

    #[test]
    fn datagrams_come_back_and_a_changed_byte_does_not_open(
        request in any_request(), random: u128, at in 0..1000_usize, change in 1..=255_u8,
    ) {
        let key = Key::new(&[9; 32]);
        let mut nonces = Nonces::new(random);
        let mut sealed = seal_request(&key, nonces.take(), PAIR, &request);
        prop_assert_eq!(open_request(&key, &sealed), Ok((PAIR, request)));
        let at = at % sealed.len();
        sealed[at] ^= change;
        prop_assert!(open_request(&key, &sealed).is_err());

        let reply = decide(&Arbiter::protected().record, &request).reply;
        let mut sealed = seal_reply(&key, nonces.take(), PAIR, &reply);
        prop_assert_eq!(open_reply(&key, &sealed), Ok((PAIR, reply)));
        prop_assert!(open_request(&key, &sealed).is_err());
        let at = at % sealed.len();
        sealed[at] ^= change;
        prop_assert!(open_reply(&key, &sealed).is_err());
    }

    #[test]
    fn no_bytes_make_parsing_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let key = Key::new(&[9; 32]);
        prop_assert!(open_request(&key, &bytes).is_err());
        prop_assert!(open_reply(&key, &bytes).is_err());
        prop_assert!(Record::decode(&bytes).is_err());
    }
}

#[test]
fn another_key_does_not_open() {
    let request = Request {
        id: RequestId(1),
        from: A,
        generation: Generation(1),
        ask: Ask::Claim,
    };
    let sealed = seal_request(&Key::new(&[1; 32]), [0; NONCE_BYTES], PAIR, &request);
    let opened = open_request(&Key::new(&[2; 32]), &sealed);
    assert_eq!(opened, Err(DatagramError::Authentication));
}
