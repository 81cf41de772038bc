//! One datagram in, at most one out: authenticate, decide, make durable, answer.

use std::sync::Mutex;

use ftlink::arbiter::datagram::{self, DatagramError, NONCE_BYTES};
use ftlink::arbiter::{Decision, Outcome, Refusal, Reply, Request, Verdict, decide, refuse};

use crate::config::Pair;
use crate::metrics::{Metrics, count};
use crate::store::{Store, StoreError};

/// Tries against a record that others change at the same time.
const MAX_CONFLICTS: usize = 8;

/// The witness without its sockets.
#[derive(Debug)]
pub struct Service {
    pairs: Vec<Pair>,
    store: Store,
    /// What was counted.
    pub metrics: Metrics,
    /// Per pair, the last failure of its store.
    troubles: Mutex<Vec<Option<String>>>,
}

impl Service {
    /// A witness for `pairs` with their records in `store`.
    #[must_use]
    pub fn new(pairs: Vec<Pair>, store: Store) -> Self {
        let troubles = Mutex::new(vec![None; pairs.len()]);
        Self {
            pairs,
            store,
            metrics: Metrics::default(),
            troubles,
        }
    }

    /// The pairs.
    #[must_use]
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Where the records are.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Answers one datagram; `None` for what is not an authentic request.
    pub async fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        count(&self.metrics.received);
        let Ok(id) = datagram::request_pair(bytes) else {
            count(&self.metrics.malformed);
            return None;
        };
        let Some(index) = self.pairs.iter().position(|pair| pair.id == id) else {
            count(&self.metrics.unknown_pair);
            return None;
        };
        let pair = &self.pairs[index];
        let request = match datagram::open_request(&pair.key, bytes) {
            Ok((_, request)) => request,
            Err(DatagramError::Authentication) => {
                count(&self.metrics.unauthenticated);
                return None;
            }
            Err(_) => {
                count(&self.metrics.malformed);
                return None;
            }
        };
        let reply = self.decide(index, &request).await;
        count(match reply.outcome {
            Outcome::Known => &self.metrics.known,
            Outcome::Verdict(Verdict::Granted(_)) => &self.metrics.granted,
            Outcome::Verdict(Verdict::Denied(_)) => &self.metrics.denied,
            Outcome::Refused(_) => &self.metrics.refused,
        });
        let mut nonce = [0; NONCE_BYTES];
        if getrandom::fill(&mut nonce).is_err() {
            // Without a fresh nonce nothing may be sealed.
            count(&self.metrics.send_errors);
            return None;
        }
        Some(datagram::seal_reply(&pair.key, nonce, id, &reply).to_vec())
    }

    async fn decide(&self, index: usize, request: &Request) -> Reply {
        for _ in 0..MAX_CONFLICTS {
            match self.attempt(index, request).await {
                Ok(reply) => {
                    self.trouble(index, None);
                    return reply;
                }
                Err(StoreError::Conflict) => {}
                Err(error) => {
                    count(&self.metrics.store_errors);
                    self.trouble(index, Some(error.to_string()));
                    let refusal = match error {
                        StoreError::Missing => Refusal::NoRecord,
                        _ => Refusal::Storage,
                    };
                    return refuse(request, refusal, None);
                }
            }
        }
        refuse(request, Refusal::Storage, None)
    }

    async fn attempt(&self, index: usize, request: &Request) -> Result<Reply, StoreError> {
        let stored = self.store.load(self.pairs[index].id).await?;
        let Decision { store, reply } = decide(&stored.record, request);
        if let Some(next) = store {
            self.store.replace(&stored, &next).await?;
            count(&self.metrics.writes);
            let from = request.from;
            eprintln!(
                "pair {}: {:?} of {from}: {:?}; generation {}",
                self.pairs[index].name, request.ask, reply.outcome, next.generation
            );
        }
        Ok(reply)
    }

    /// The last failure of a pair's store, until it works again.
    #[must_use]
    pub fn last_trouble(&self, index: usize) -> Option<String> {
        self.troubles
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(index)
            .cloned()
            .flatten()
    }

    /// Remembers a failure, and says it once.
    fn trouble(&self, index: usize, trouble: Option<String>) {
        let mut troubles = self
            .troubles
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(last) = troubles.get_mut(index) else {
            return;
        };
        if *last != trouble {
            match &trouble {
                Some(what) => eprintln!("pair {}: refusing: {what}", self.pairs[index].name),
                None => eprintln!("pair {}: the record is good again", self.pairs[index].name),
            }
            *last = trouble;
        }
    }
}
