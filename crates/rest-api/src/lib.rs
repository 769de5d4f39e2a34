//! The contract of the REST control socket: plain serde types for every request and answer, described by
//! OpenAPI ([`ToSchema`](utoipa::ToSchema)). Types only: nothing here acts, and nothing knows HTTP.
//!
//! HTTP/1.1 on a Unix stream socket, [`SOCKET_PATH`] unless told otherwise:
//! `curl --unix-socket /run/ec2vmm/ec2vmmd.sock http://localhost/v1/instances`.
//!
//! | request | query | body | answer |
//! |---|---|---|---|
//! | `POST /v1/instances` | | [`LaunchRequest`] | 201 [`Launched`] |
//! | `GET /v1/instances` | [`ListQuery`] | | [`InstanceList`] |
//! | `GET /v1/instances/{instance_id}` | | | [`Instance`] |
//! | `PATCH /v1/instances/{instance_id}` | | [`InstanceChange`] | [`Instance`] |
//! | `GET /v1/instances/{instance_id}/user-data` | | | [`UserData`] |
//! | `POST /v1/instances/{instance_id}/start` | | | 202 [`StateChange`] |
//! | `POST /v1/instances/{instance_id}/stop` | [`StopQuery`] | | 202 [`StateChange`] |
//! | `POST /v1/instances/{instance_id}/reboot` | | | 202 [`StateChange`] |
//! | `POST /v1/instances/{instance_id}/terminate` | | | 202 [`StateChange`] |
//! | `GET /v1/instances/{instance_id}/console` | | | [`ConsoleOutput`] |
//! | `GET /v1/instances/{instance_id}/console/stream` | | | 101, then raw bytes both ways: [`CONSOLE_PROTOCOL`] |
//! | `GET /v1/instances/{instance_id}/timeline` | | | [`Timeline`] |
//! | `GET /v1/instances/{instance_id}/usage` | | | [`Usage`] |
//! | `GET /v1/usage` | | | [`UsageList`]: of every running instance |
//! | `POST /v1/images` | | [`RegisterImageRequest`] | 201 [`Image`] |
//! | `GET /v1/images` | [`ListQuery`] | | [`ImageList`] |
//! | `GET /v1/images/{image}` | | | [`Image`] |
//! | `DELETE /v1/images/{image}` | | | 204 |
//! | `GET /v1/instance-types` | [`InstanceTypeQuery`] | | [`InstanceTypeList`] |
//! | `GET /v1/instance-types/{name}` | | | [`InstanceType`] |
//! | `POST /v1/key-pairs` | | [`CreateKeyPairRequest`] | 201 [`CreatedKeyPair`], the one time that the private key is seen |
//! | `POST /v1/key-pair-imports` | | [`ImportKeyPairRequest`] | 201 [`KeyPair`] |
//! | `GET /v1/key-pairs` | [`KeyPairQuery`] | | [`KeyPairList`] |
//! | `GET /v1/key-pairs/{key_pair}` | | | [`KeyPair`] |
//! | `DELETE /v1/key-pairs/{key_pair}` | | | 204 |
//! | `GET /v1/volumes` | [`ListQuery`] | | [`VolumeList`] |
//! | `GET /v1/volumes/{volume_id}` | | | [`Volume`] |
//! | `DELETE /v1/volumes/{volume_id}` | | | 204 |
//! | `POST /v1/tags/{resource_id}` | | [`AddTagsRequest`] | 204 |
//! | `DELETE /v1/tags/{resource_id}` | [`RemoveTagsQuery`] | | 204 |
//! | `GET /v1/cost` | [`CostQuery`] | | [`CostReport`] |
//! | `GET /v1/events` | [`EventQuery`] | | [`EventList`] |
//! | `GET /v1/events/stream` | [`EventStreamQuery`] | | server-sent events, each an [`Event`] |
//! | `GET /v1/status` | | | [`Status`] |
//! | `GET /v1/backup` | | | the database, consistent, as one SQLite file (`application/vnd.sqlite3`) |
//! | `GET /v1/openapi.json` | | | this contract as OpenAPI 3.1 |
//! | `GET /healthz` | | | [`Health`]: the process answers |
//! | `GET /readyz` | | | [`Health`]; 503 [`Problem`] while it starts or ends |
//! | `GET /metrics` | | | Prometheus text |
//!
//! * `{image}` is an image's id or its name; `{key_pair}` a key pair's id or its name. What has the form of
//!   an id is one. In paths, names are percent-encoded.
//! * Every error is a [`Problem`] (`application/problem+json`), whoever found it.
//! * Every answer has the header [`REQUEST_ID_HEADER`], which the daemon's log repeats.
//! * [`IDEMPOTENCY_HEADER`] on `POST /v1/instances` makes a repeated request answer as the first did.
//! * Unknown fields and unknown query parameters are refused, never ignored.
//! * Times are RFC 3339 in UTC with milliseconds, as EC2 writes them. Names end in their unit. An absent
//!   optional field is not written.

mod backup;
mod console;
mod cost;
mod events;
mod images;
mod instance_types;
mod instances;
mod key_pairs;
mod listing;
mod problem;
mod status;
mod tags;
mod timeline;
mod usage;
mod volumes;

pub use backup::BACKUP_MEDIA_TYPE;
pub use console::{CONSOLE_PROTOCOL, ConsoleOutput};
pub use cost::{Cost, CostQuery, CostReport, InstanceCost};
pub use events::{
    EVENTS_PAGE_MAX, Event, EventKind, EventList, EventQuery, EventStreamQuery, LAST_EVENT_ID_HEADER,
};
pub use images::{DiskFormat, Image, ImageList, RegisterImageRequest};
pub use instance_types::{Architecture, InstanceType, InstanceTypeList, InstanceTypeQuery};
pub use instances::{
    BlockDevice, CreditMode, IDEMPOTENCY_HEADER, Instance, InstanceChange, InstanceList, InstanceState,
    LaunchRequest, Launched, RootVolume, ShutdownBehavior, StateChange, StateReason, StopQuery, UserData,
};
pub use key_pairs::{
    CreateKeyPairRequest, CreatedKeyPair, ImportKeyPairRequest, KeyKind, KeyPair, KeyPairList, KeyPairQuery,
    PrivateKeyFormat,
};
pub use listing::{ListQuery, PAGE_MAX};
pub use problem::{PROBLEM_MEDIA_TYPE, Problem};
pub use status::{Capacity, Health, Status};
pub use tags::{AddTagsRequest, RemoveTagsQuery};
pub use timeline::{Timeline, TimelineStep};
pub use usage::{Usage, UsageList};
pub use volumes::{Volume, VolumeAttachment, VolumeKind, VolumeList};

/// Where the socket is unless told otherwise.
pub const SOCKET_PATH: &str = "/run/ec2vmm/ec2vmmd.sock";

/// The header by which an answer is found again in the daemon's log. One that the client sends (1 to 64
/// letters, digits, `-` and `_`) is kept.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
