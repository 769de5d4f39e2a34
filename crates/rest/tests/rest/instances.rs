//! Instances over the wire.

use serde_json::json;

use crate::place::{JSON, Place, UNKNOWN};

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life() {
    let (place, id) = Place::furnished().await;
    let path = |what: &str| format!("/v1/instances/{id}{what}");

    let running = place.get(&path("")).await.expect(200);
    assert_eq!(running["state_code"], 16);
    assert_eq!(running["vcpus"], 2);
    assert_eq!(running["login_user"], "root");
    assert_eq!(running["block_devices"].as_array().unwrap().len(), 1);

    let rebooted = place.act("POST", &path("/reboot")).await.expect(202);
    assert_eq!(rebooted, json!({"instance_id": id, "previous_state": "running", "current_state": "running"}));

    let stopping = place.act("POST", &path("/stop")).await.expect(202);
    assert_eq!(
        stopping,
        json!({"instance_id": id, "previous_state": "running", "current_state": "stopping"})
    );
    let stopped = place.until(&id, "stopped").await;
    assert_eq!(stopped["private_ip_address"], running["private_ip_address"]);

    let body = json!({"instance_type": "t3.small", "user_data": "aGVsbG8=", "disable_api_termination": true});
    let changed = place.ask("PATCH", &path(""), &[JSON], &body.to_string()).await.expect(200);
    assert_eq!((&changed["instance_type"], &changed["memory_mib"]), (&json!("t3.small"), &json!(2048)));
    assert_eq!(place.get(&path("/user-data")).await.expect(200)["user_data"], "aGVsbG8=");

    assert_eq!(place.act("POST", &path("/start")).await.expect(202)["current_state"], "pending");
    place.until(&id, "running").await;

    let protected = place.act("POST", &path("/terminate")).await;
    assert!(protected.problem().starts_with("409 OperationNotPermitted: "), "{}", protected.problem());
    let body = json!({"disable_api_termination": false}).to_string();
    place.ask("PATCH", &path(""), &[JSON], &body).await.expect(200);
    let gone = place.act("POST", &path("/terminate")).await.expect(202);
    assert_eq!(gone["current_state"], "shutting-down");
    let terminated = place.until(&id, "terminated").await;
    assert_eq!(terminated["state_code"], 48);
    assert!(terminated["terminated_time"].is_string());
    let refused = place.act("POST", &path("/start")).await;
    assert!(refused.problem().starts_with("409 IncorrectInstanceState: "), "{}", refused.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_stop_does_not_ask_the_guest() {
    let (place, id) = Place::furnished().await;
    place.host.guest_ignores_power_button(&id.parse().unwrap());
    place.act("POST", &format!("/v1/instances/{id}/stop?force=true")).await.expect(202);
    place.until(&id, "stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_launch_answers_as_the_first_did() {
    let (place, _) = Place::furnished().await;
    let body = json!({"image": "minimal", "instance_type": "t3.nano", "max_count": 3}).to_string();
    let key = ("idempotency-key", "once-and-for-all");
    let first = place.ask("POST", "/v1/instances", &[JSON, key], &body).await.expect(201);
    let again = place.ask("POST", "/v1/instances", &[JSON, key], &body).await.expect(201);
    let ids = |launched: &serde_json::Value| -> Vec<String> {
        let instances = launched["instances"].as_array().unwrap();
        instances.iter().map(|instance| instance["instance_id"].to_string()).collect()
    };
    assert_eq!(first["reservation_id"], again["reservation_id"]);
    assert_eq!((ids(&first).len(), ids(&first)), (3, ids(&again)));
    assert_eq!(first["instances"][0]["client_token"], "once-and-for-all");

    let other = json!({"image": "minimal", "instance_type": "t3.micro", "max_count": 3}).to_string();
    let reused = place.ask("POST", "/v1/instances", &[JSON, key], &other).await;
    assert!(reused.problem().starts_with("409 IdempotentParameterMismatch: "), "{}", reused.problem());
    for wrong in ["", "two words", &"x".repeat(65)] {
        let refused = place.ask("POST", "/v1/instances", &[JSON, ("idempotency-key", wrong)], &body).await;
        assert!(refused.problem().starts_with("400 InvalidParameterValue: "), "{}", refused.problem());
    }
    assert_eq!(place.get("/v1/instances").await.expect(200)["instances"].as_array().unwrap().len(), 4);

    // Also when the image that it named is gone.
    let image = place.get("/v1/images/minimal").await.expect(200);
    let path = format!("/v1/images/{}", image["image_id"].as_str().unwrap());
    place.act("DELETE", &path).await.expect(204);
    let late = place.ask("POST", "/v1/instances", &[JSON, key], &body).await.expect(201);
    assert_eq!(ids(&late), ids(&first));
    let new = place.ask("POST", "/v1/instances", &[JSON], &body).await;
    assert!(new.problem().starts_with("404 InvalidAMIID.NotFound: "), "{}", new.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_everything_once() {
    let (place, _) = Place::furnished().await;
    let launch = json!({"image": "minimal", "instance_type": "t3.nano", "min_count": 22});
    place.post("/v1/instances", &launch).await.expect(201);
    let mut seen = Vec::new();
    let mut path = "/v1/instances?max_results=5".to_owned();
    loop {
        let page = place.get(&path).await.expect(200);
        let instances = page["instances"].as_array().unwrap();
        assert!(instances.len() <= 5);
        seen.extend(instances.iter().map(|instance| instance["instance_id"].as_str().unwrap().to_owned()));
        let Some(token) = page["next_token"].as_str() else { break };
        path = format!("/v1/instances?max_results=5&next_token={token}");
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((count, seen.len()), (23, 23));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters() {
    let (place, id) = Place::furnished().await;
    let launch = json!({"image": "minimal", "instance_type": "t3.nano", "tags": {"Name": "a,b=c"}});
    place.post("/v1/instances", &launch).await.expect(201);
    let count = async |query: &str| {
        let found = place.get(&format!("/v1/instances?{query}")).await.expect(200);
        found["instances"].as_array().unwrap().len()
    };
    assert_eq!(count("filter=instance-type=t3.*").await, 2);
    assert_eq!(count("filter=instance-type=t3.nano,t3.small").await, 1);
    assert_eq!(count("filter=instance-type=t3.*&filter=key-name=my-key").await, 1);
    assert_eq!(count("filter=tag:Name=a%5C%2Cb%3Dc").await, 1);
    assert_eq!(count("filter=tag:Name=a").await, 0);
    assert_eq!(count(&format!("id={id}")).await, 1);
    let wrong = place.get("/v1/instances?filter=colour=blue").await;
    assert!(wrong.problem().starts_with("400 InvalidParameterValue: "), "{}", wrong.problem());
    let unknown = place.get(&format!("/v1/instances?id={id}&id={UNKNOWN}")).await;
    assert!(unknown.problem().starts_with("404 InvalidInstanceID.NotFound: "), "{}", unknown.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_costs_and_uses() {
    let (place, id) = Place::furnished().await;
    let report = place.get("/v1/cost").await.expect(200);
    let of = &report["instances"][0];
    assert_eq!((of["instance_id"].as_str(), &of["cost"]["starts"]), (Some(id.as_str()), &json!(1)));
    // 60 s of a t3.micro at 0.0104 USD an hour, whatever it ran so far.
    assert_eq!(of["cost"]["compute_usd"], "0.000173333");
    let one = place.get(&format!("/v1/cost?instance_id={id}")).await.expect(200);
    assert_eq!(one["instances"].as_array().unwrap().len(), 1);
    let usage = place.get("/v1/usage").await.expect(200);
    assert_eq!(usage["usage"][0]["instance_id"], id.as_str());
    let timeline = place.get(&format!("/v1/instances/{id}/timeline")).await.expect(200);
    assert!(!timeline["steps"].as_array().unwrap().is_empty());
    let unknown = place.get(&format!("/v1/cost?instance_id={UNKNOWN}")).await;
    assert!(unknown.problem().starts_with("404 InvalidInstanceID.NotFound: "), "{}", unknown.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_come_and_go() {
    let (place, id) = Place::furnished().await;
    let path = format!("/v1/tags/{id}");
    place.post(&path, &json!({"tags": {"Name": "web", "Stage": "test"}})).await.expect(204);
    place.act("DELETE", &format!("{path}?key=Stage&key=Never")).await.expect(204);
    let shown = place.get(&format!("/v1/instances/{id}")).await.expect(200);
    assert_eq!(shown["tags"], json!({"Name": "web"}));
    let all = place.act("DELETE", &path).await;
    assert!(all.problem().starts_with("400 "), "{}", all.problem());
    let unknown = place.post(&format!("/v1/tags/{UNKNOWN}"), &json!({"tags": {"a": "b"}})).await;
    assert!(unknown.problem().starts_with("404 "), "{}", unknown.problem());
}
