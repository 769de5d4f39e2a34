//! Each class of error, as clients read it.

use expect_test::{Expect, expect};
use serde_json::json;

use crate::place::{JSON, Place, UNKNOWN};

#[track_caller]
fn check(problem: &str, expected: &Expect) {
    expected.assert_eq(problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there() {
    let place = Place::new().await;
    check(
        &place.get(&format!("/v1/instances/{UNKNOWN}")).await.problem(),
        &expect!["404 InvalidInstanceID.NotFound: The instance ID 'i-00000000000000000' does not exist"],
    );
    check(
        &place.get("/v1/instances/bogus").await.problem(),
        &expect![[r#"400 InvalidInstanceID.Malformed: Invalid id: "bogus""#]],
    );
    check(
        &place.get("/v1/instances/%FF").await.problem(),
        &expect![[
            r#"400 InvalidParameterValue: the path makes no sense: Invalid URL: Invalid UTF-8 in `instance_id`"#
        ]],
    );
    check(&place.get("/v2").await.problem(), &expect!["404 InvalidAction: there is nothing at this path"]);
    check(&place.get("/").await.problem(), &expect!["404 InvalidAction: there is nothing at this path"]);
    let wrong_method = place.act("PUT", "/v1/instances").await;
    check(&wrong_method.problem(), &expect!["405 InvalidAction: this path does not have this method"]);
    assert_eq!(wrong_method.header("allow").map(|allow| allow.contains("POST")), Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense() {
    let (place, id) = Place::furnished().await;
    let launch = async |body: serde_json::Value| place.post("/v1/instances", &body).await.problem();
    let minimal = |kind: &str| json!({"image": "minimal", "instance_type": kind});
    check(
        &launch(minimal("t3.mikro")).await,
        &expect!["400 InvalidParameterValue: Invalid value 't3.mikro' for InstanceType."],
    );
    check(
        &launch(json!({"image": "nothing", "instance_type": "t3.micro"})).await,
        &expect!["404 InvalidAMIID.NotFound: The image id '[nothing]' does not exist"],
    );
    let too_many = json!({"image": "minimal", "instance_type": "t3.nano", "min_count": 2, "max_count": 1});
    assert!(launch(too_many).await.starts_with("400 InvalidParameter"));
    let greedy = json!({"image": "minimal", "instance_type": "t3.2xlarge", "min_count": 1000});
    assert!(launch(greedy).await.starts_with("409 InsufficientInstanceCapacity: "));
    let user_data = json!({"image": "minimal", "instance_type": "t3.nano", "user_data": "%"});
    assert!(launch(user_data).await.starts_with("400 InvalidParameterValue: `user_data` is not base64: "));
    let path = format!("/v1/instances/{id}");
    let running = place.ask("PATCH", &path, &[JSON], r#"{"instance_type": "t3.nano"}"#).await.problem();
    assert!(running.starts_with("409 IncorrectInstanceState: "), "{running}");
    let nothing = place.ask("PATCH", &format!("/v1/instances/{id}"), &[JSON], "{}").await;
    check(
        &nothing.problem(),
        &expect!["400 MissingParameter: the request names nothing that is to be changed"],
    );
    let query = place.get("/v1/instances?colour=blue").await;
    check(
        &query.problem(),
        &expect![
            "400 InvalidParameterValue: the query makes no sense: unknown field `colour`, expected one of `id`, `filter`, `max_results`, `next_token`"
        ],
    );
    let no_query = place.get("/v1/status?colour=blue").await;
    check(&no_query.problem(), &expect!["400 InvalidParameterValue: this request has no query parameters"]);
    assert_eq!(place.get("/v1/instances").await.expect(200)["instances"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_none() {
    let place = Place::new().await;
    let post = async |headers: &[(&str, &str)], body: &str| {
        place.ask("POST", "/v1/instances", headers, body).await.problem()
    };
    check(
        &post(&[JSON], "{").await,
        &expect!["400 MalformedBody: the body is not JSON: EOF while parsing an object at line 1 column 1"],
    );
    check(
        &post(&[JSON], "[\"minimal\", \"t3.micro\"]").await,
        &expect![
            "422 InvalidParameterValue: the body is not what this request takes: invalid type: sequence, expected a map at line 1 column 0"
        ],
    );
    check(
        &post(&[JSON], r#"{"image": "minimal", "instance_type": "t3.nano", "root_volume": [8]}"#).await,
        &expect![
            "422 InvalidParameterValue: the body is not what this request takes: invalid type: sequence, expected a map"
        ],
    );
    check(
        &post(&[JSON], r#"{"image": "minimal", "colour": "blue"}"#).await,
        &expect![
            "422 InvalidParameterValue: the body is not what this request takes: unknown field `colour`, expected one of `image`, `instance_type`, `min_count`, `max_count`, `key_name`, `user_data`, `root_volume`, `disable_api_termination`, `disable_api_stop`, `instance_initiated_shutdown_behavior`, `credit_mode`, `private_ip_address`, `tags`, `volume_tags`"
        ],
    );
    for kind in
        [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/x-www-form-urlencoded")]]
    {
        check(
            &post(kind, "{}").await,
            &expect!["415 UnsupportedMediaType: the body is not declared to be JSON"],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_id_is_kept_or_made() {
    let place = Place::new().await;
    let given = place.ask("GET", "/healthz", &[("x-request-id", "my-request_1")], "").await;
    assert_eq!(given.header("x-request-id"), Some("my-request_1"));
    for wrong in ["", "a b", "\"><script>", &"x".repeat(65)] {
        let made = place.ask("GET", "/healthz", &[("x-request-id", wrong)], "").await;
        assert_eq!(made.header("x-request-id").map(str::len), Some(36), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_is_down() {
    let (place, id) = Place::furnished().await;
    place.cloud.shut_down().await;
    let down = place.act("POST", &format!("/v1/instances/{id}/stop")).await;
    assert!(down.problem().starts_with("503 Unavailable: "), "{}", down.problem());
    assert_eq!(down.header("retry-after"), Some("1"));
}
