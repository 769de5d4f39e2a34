//! The table of routes in the contract's own words, the description and the server are one.

use std::collections::BTreeSet;

use crate::place::Place;

const TABLE: &str = include_str!("../../../rest-api/src/lib.rs");

/// `GET /v1/instances`, of every line of the table.
fn table() -> BTreeSet<String> {
    let lines = TABLE.lines().filter_map(|line| line.strip_prefix("//! | `"));
    lines.filter_map(|line| line.split('`').next()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_contract_names_is_there() {
    let place = Place::new().await;
    let contract = place.get("/v1/openapi.json").await.expect(200);
    assert_eq!(contract["openapi"], "3.1.0");
    let mut described = BTreeSet::new();
    for (path, item) in contract["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            described.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    assert_eq!(table(), described);
    assert!(described.len() > 35);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_says_of_itself() {
    let (place, _) = Place::furnished().await;
    let status = place.get("/v1/status").await.expect(200);
    assert_eq!((&status["host"], &status["instances"]["running"]), (&"simulated".into(), &1.into()));
    assert_eq!(status["capacity"]["vcpus_given"], 2);
    assert_eq!(place.get("/healthz").await.expect(200)["status"], "ok");
    assert_eq!(place.get("/readyz").await.expect(200)["status"], "ok");
    let metrics = place.get("/metrics").await;
    let text = String::from_utf8(metrics.body).unwrap();
    for line in [
        "ec2vmm_build_info{version=\"0\",host=\"simulated\"} 1",
        "ec2vmm_instances{state=\"running\"} 1",
        "ec2vmm_requests_total{method=\"POST\",route=\"/v1/instances\",status=\"201\"} 1",
        "ec2vmm_vcpus_given 2",
        "# EOF",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_a_database() {
    let (place, id) = Place::furnished().await;
    let backup = place.get("/v1/backup").await;
    assert_eq!((backup.status, backup.header("content-type")), (200, Some("application/vnd.sqlite3")));
    assert_eq!(backup.header("content-length").unwrap(), backup.body.len().to_string());
    let path = place.folder.path().join("copy.db");
    std::fs::write(&path, &backup.body).unwrap();
    let copy = ec2vmm_store::Store::open(&path).unwrap();
    assert!(copy.get::<ec2vmm_model::Instance>(&id).unwrap().is_some());
    let left = std::fs::read_dir(place.folder.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("backup-")), "{left:?}");
}
