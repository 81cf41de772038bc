//! Status as JSON and metrics as Prometheus text, for people and their monitoring. Nothing here
//! changes a record.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ftlink::arbiter::{Member, RecordState};
use serde::Serialize;

use crate::service::Service;
use crate::store::Stored;

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

/// The routes: `/status`, `/metrics`, `/health`.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(service)
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

async fn status(State(service): State<Arc<Service>>) -> Json<Vec<PairStatus>> {
    let mut pairs = Vec::new();
    for (index, pair) in service.pairs().iter().enumerate() {
        let (stored, trouble) = look(&service, index).await;
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
    Json(pairs)
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let mut text = service.metrics.text();
    let mut rows = [String::new(), String::new(), String::new()];
    for (index, pair) in service.pairs().iter().enumerate() {
        let (stored, _) = look(&service, index).await;
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
        text.push_str(&format!("# TYPE duet_witness_{name} gauge\n{row}"));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// 200 when every record can be read, 503 with what is wrong otherwise.
async fn health(State(service): State<Arc<Service>>) -> Response {
    let mut wrong = String::new();
    for (index, pair) in service.pairs().iter().enumerate() {
        if let (None, trouble) = look(&service, index).await {
            let trouble = trouble.unwrap_or_default();
            wrong.push_str(&format!("pair {}: {trouble}\n", pair.name));
        }
    }
    if wrong.is_empty() {
        (StatusCode::OK, "good\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, wrong).into_response()
    }
}
