//! Records in an existing etcd cluster, by its v3 JSON gateway: reads are linearizable, a change is a
//! transaction that compares the key's revision. Several witnesses may stand in front of one cluster.

use std::error::Error;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ftlink::arbiter::Record;
use ftlink::ids::PairId;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::store::{StoreError, Stored, decode};

/// Longest wait for one answer of etcd. A host asks again much sooner, and gets the same answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

#[cfg(not(feature = "tls"))]
type Connector = HttpConnector;
#[cfg(feature = "tls")]
type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

/// Records under `/duet/witness/`.
#[derive(Debug)]
pub struct EtcdStore {
    base: String,
    client: Client<Connector, Full<Bytes>>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    mod_revision: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    succeeded: bool,
}

impl EtcdStore {
    /// A store behind the gateway at `base`, such as `http://127.0.0.1:2379`.
    ///
    /// # Errors
    ///
    /// The URL has no scheme this build speaks, or no HTTP client can be made.
    pub fn new(base: &str) -> Result<Self, StoreError> {
        let base = base.trim_end_matches('/');
        let https = base.starts_with("https://");
        if !base.starts_with("http://") && !https {
            return Err(StoreError::Failed(format!(
                "etcd URL {base:?} begins with neither http:// nor https://"
            )));
        }
        if https && !cfg!(feature = "tls") {
            return Err(StoreError::Failed(format!(
                "etcd URL {base:?}: this build has no TLS (build with --features tls)"
            )));
        }
        let connector =
            connector().map_err(|error| StoreError::Failed(format!("no TLS: {error}")))?;
        Ok(Self {
            base: base.to_string(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// Missing, corrupt, another pair's, or etcd does not answer.
    pub async fn load(&self, pair: PairId) -> Result<Stored, StoreError> {
        let range: Range = self.post("range", &json!({ "key": key(pair) })).await?;
        let found = range.kvs.first().ok_or(StoreError::Missing)?;
        let version = found
            .mod_revision
            .parse()
            .map_err(|_| StoreError::Failed("etcd: mod_revision is not a number".into()))?;
        let bytes = STANDARD
            .decode(&found.value)
            .map_err(|_| StoreError::Failed("etcd: value is not base64".into()))?;
        Ok(Stored {
            record: decode(&bytes, pair)?,
            version,
        })
    }

    /// Replaces what was loaded.
    ///
    /// # Errors
    ///
    /// It changed meanwhile, or etcd does not answer; then it may have been replaced or not.
    pub async fn replace(&self, old: &Stored, record: &Record) -> Result<(), StoreError> {
        let key = key(record.pair);
        let body = json!({
            "compare": [{
                "key": key,
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": old.version.to_string(),
            }],
            "success": [{ "request_put": { "key": key, "value": value(record) } }],
        });
        let done: Transaction = self.post("txn", &body).await?;
        if done.succeeded {
            Ok(())
        } else {
            Err(StoreError::Conflict)
        }
    }

    /// Writes a record whatever was there.
    ///
    /// # Errors
    ///
    /// Etcd does not answer.
    pub async fn overwrite(&self, record: &Record) -> Result<(), StoreError> {
        let body = json!({ "key": key(record.pair), "value": value(record) });
        self.post::<Value>("put", &body).await.map(|_| ())
    }

    async fn post<Answer: serde::de::DeserializeOwned>(
        &self,
        call: &str,
        body: &Value,
    ) -> Result<Answer, StoreError> {
        let url = format!("{}/v3/kv/{call}", self.base);
        let failed = |what: String| StoreError::Failed(format!("etcd {url}: {what}"));
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(&url, body));
        let (status, bytes) = answer
            .await
            .map_err(|_| failed(format!("no answer in {} s", TIMEOUT.as_secs())))?
            .map_err(|error| failed(causes(&*error)))?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            return Err(failed(format!("{status}: {said}")));
        }
        serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
    }

    /// One request, and its answer of at most [`MAX_ANSWER_BYTES`].
    async fn exchange(
        &self,
        url: &str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
        Ok((status, body.collect().await?.to_bytes()))
    }
}

#[cfg(not(feature = "tls"))]
fn connector() -> std::io::Result<Connector> {
    Ok(HttpConnector::new())
}

#[cfg(feature = "tls")]
fn connector() -> std::io::Result<Connector> {
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()?
        .https_or_http()
        .enable_http1()
        .build())
}

/// An error with what caused it: the outermost alone says little more than that there was one.
fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let texts: Vec<_> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}

fn key(pair: PairId) -> String {
    STANDARD.encode(format!("/duet/witness/{pair}"))
}

fn value(record: &Record) -> String {
    STANDARD.encode(record.encode())
}
