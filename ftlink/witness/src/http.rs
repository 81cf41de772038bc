//! Status as JSON and metrics as Prometheus text, for people and their monitoring. Nothing here
//! changes a record.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use ftlink::arbiter::{Member, RecordState};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::service::Service;
use crate::store::Stored;

/// Connections at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a connection could not be accepted, which may be for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct MemberStatus {
    node: u64,
    boot: String,
}

#[derive(Serialize)]
struct PairStatus {
    name: String,
    id: String,
    generation: Option<u64>,
    state: Option<&'static str>,
    owner: Option<MemberStatus>,
    backup: Option<MemberStatus>,
    changes: Option<u64>,
    trouble: Option<String>,
}

/// Answers `/status`, `/metrics` and `/health` for ever.
pub async fn serve(listener: TcpListener, service: Arc<Service>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    connection(stream, &service).await;
                    drop(place);
                });
            }
            Err(error) => {
                eprintln!("http: cannot accept: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, service: &Service) {
    let answer = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(route(service, request.method(), request.uri().path()).await)
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    // A client that goes away or talks nonsense is nobody's trouble but its own.
    drop(ended);
}

type Answer = Response<Full<Bytes>>;

async fn route(service: &Service, method: &Method, path: &str) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, String::new());
    }
    match path {
        "/status" => status(service).await,
        "/metrics" => metrics(service).await,
        "/health" => health(service).await,
        _ => text(StatusCode::NOT_FOUND, String::new()),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn text(status: StatusCode, body: String) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

const fn state_name(state: RecordState) -> &'static str {
    match state {
        RecordState::Empty => "empty",
        RecordState::Running => "running",
        RecordState::Stopped => "stopped",
        RecordState::Restored => "restored",
    }
}

fn member(member: Member) -> MemberStatus {
    MemberStatus {
        node: member.node.0,
        boot: member.boot.to_string(),
    }
}

async fn look(service: &Service, index: usize) -> (Option<Stored>, Option<String>) {
    match service.store().load(service.pairs()[index].id).await {
        Ok(stored) => (Some(stored), service.last_trouble(index)),
        Err(error) => (None, Some(error.to_string())),
    }
}

async fn status(service: &Service) -> Answer {
    let mut pairs = Vec::new();
    for (index, pair) in service.pairs().iter().enumerate() {
        let (stored, trouble) = look(service, index).await;
        let record = stored.map(|stored| stored.record);
        pairs.push(PairStatus {
            name: pair.name.clone(),
            id: pair.id.to_string(),
            generation: record.map(|record| record.generation.0),
            state: record.map(|record| state_name(record.state)),
            owner: record.and_then(|record| record.owner).map(member),
            backup: record.and_then(|record| record.backup).map(member),
            changes: record.map(|record| record.sequence),
            trouble,
        });
    }
    match serde_json::to_vec(&pairs) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn metrics(service: &Service) -> Answer {
    let mut page = service.metrics.text();
    let mut rows = [String::new(), String::new(), String::new()];
    for (index, pair) in service.pairs().iter().enumerate() {
        let (stored, _) = look(service, index).await;
        let label = format!("{{pair=\"{}\"}}", pair.name);
        let good = u8::from(stored.is_some());
        let mut written = writeln!(rows[0], "duet_witness_record_good{label} {good}");
        if let Some(stored) = stored {
            let protected = u8::from(stored.record.backup.is_some());
            let generation = stored.record.generation;
            written = written
                .and(writeln!(
                    rows[1],
                    "duet_witness_generation{label} {generation}"
                ))
                .and(writeln!(
                    rows[2],
                    "duet_witness_protected{label} {protected}"
                ));
        }
        debug_assert!(written.is_ok(), "a string takes everything");
    }
    let names = ["record_good", "generation", "protected"];
    for (name, row) in names.iter().zip(rows) {
        page.push_str(&format!("# TYPE duet_witness_{name} gauge\n{row}"));
    }
    answer(StatusCode::OK, "text/plain; version=0.0.4", page)
}

/// 200 when every record can be read, 503 with what is wrong otherwise.
async fn health(service: &Service) -> Answer {
    let mut wrong = String::new();
    for (index, pair) in service.pairs().iter().enumerate() {
        if let (None, trouble) = look(service, index).await {
            let trouble = trouble.unwrap_or_default();
            wrong.push_str(&format!("pair {}: {trouble}\n", pair.name));
        }
    }
    if wrong.is_empty() {
        text(StatusCode::OK, "good\n".to_owned())
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, wrong)
    }
}
