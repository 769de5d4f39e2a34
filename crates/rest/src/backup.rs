//! Backups of the database: a copy is made beside it, sent, and gone.

use std::path::PathBuf;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use ec2vmm_rest_api::BACKUP_MEDIA_TYPE;
use tokio::{
    fs::File,
    io::AsyncReadExt,
    sync::{Semaphore, SemaphorePermit, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{extract::NoQuery, problem::Refusal, routes::Rest};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(backup))
}

/// Copies the database
///
/// Consistent, and taken while the daemon works: one SQLite file. Disks are not in it.
#[utoipa::path(get, path = "/v1/backup", tag = "daemon",
    responses((status = 200, content_type = BACKUP_MEDIA_TYPE, body = [u8])))]
async fn backup(State(rest): State<Rest>, _: NoQuery) -> Result<impl IntoResponse, Refusal> {
    let turn = TURN.acquire().await.map_err(|error| unreadable(&error))?;
    let path = Copy(rest.scratch.join(format!("backup-{}.db", Uuid::new_v4())));
    rest.cloud.backup(path.0.clone()).await.map_err(|error| unreadable(&error))?;
    let file = File::open(&path.0).await.map_err(|error| unreadable(&error))?;
    let length = file.metadata().await.map_err(|error| unreadable(&error))?.len();
    // It lives on until it is read, whatever happens to us.
    drop(path);
    let headers = [
        (header::CONTENT_TYPE, BACKUP_MEDIA_TYPE.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"ec2vmm.db\"".to_owned()),
    ];
    Ok((headers, Body::from_stream(chunks(file, turn))))
}

/// A file that is removed with its last user.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "a backup's copy stays behind");
            }
            _ => {}
        }
    }
}

fn chunks(mut file: File, turn: SemaphorePermit<'static>) -> ReceiverStream<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        let _until_it_is_sent = turn;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = file.read_buf(&mut chunk).await;
            let (next, last) = match read {
                Ok(0) => return,
                Ok(_) => (Ok(chunk.into()), false),
                Err(error) => (Err(error), true),
            };
            if sender.send(next).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::error!(error, "the database cannot be copied");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the database cannot be copied")
        .hint("see the daemon's log")
}

/// One copy at a time, so that requests cannot fill the disk.
static TURN: Semaphore = Semaphore::const_new(1);
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_AHEAD: usize = 4;
