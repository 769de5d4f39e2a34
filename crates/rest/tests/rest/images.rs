//! Images, instance types and volumes over the wire.

use serde_json::json;

use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn images_by_name_and_id() {
    let place = Place::new().await;
    let image = place.register("debian 12/standard").await;
    let id = image["image_id"].as_str().unwrap();
    for name in [id, "debian%2012%2Fstandard"] {
        assert_eq!(place.get(&format!("/v1/images/{name}")).await.expect(200), image);
    }
    let again =
        json!({"name": "debian 12/standard", "file": "disk.raw", "format": "raw", "login_user": "root"});
    let twice = place.post("/v1/images", &again).await.problem();
    assert!(twice.starts_with("409 InvalidAMIName.Duplicate: "), "{twice}");
    place.act("DELETE", &format!("/v1/images/{id}")).await.expect(204);
    for name in [id, "debian%2012%2Fstandard"] {
        let gone = place.get(&format!("/v1/images/{name}")).await.problem();
        assert!(gone.starts_with("404 InvalidAMIID.NotFound: "), "{gone}");
    }
    let malformed = place.get("/v1/images/ami-xyz").await.problem();
    assert!(malformed.starts_with("400 InvalidAMIID.Malformed: "), "{malformed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_types() {
    let place = Place::new().await;
    let micro = place.get("/v1/instance-types/t3.micro").await.expect(200);
    assert_eq!((&micro["vcpus"], &micro["runnable"]), (&json!(2), &json!(true)));
    let arm =
        place.get("/v1/instance-types?filter=processor-info.supported-architecture=arm64&max_results=5");
    let arm = arm.await.expect(200);
    assert!(arm["instance_types"].as_array().unwrap().iter().all(|arm| arm["runnable"] == false));
    let unknown = place.get("/v1/instance-types/t3.tiny").await.problem();
    assert!(unknown.starts_with("404 InvalidInstanceType: "), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes() {
    let (place, id) = Place::furnished().await;
    let volumes = place.get("/v1/volumes").await.expect(200);
    let volume = &volumes["volumes"][0];
    assert_eq!(volume["attachment"]["instance_id"], id.as_str());
    let path = format!("/v1/volumes/{}", volume["volume_id"].as_str().unwrap());
    assert_eq!(&place.get(&path).await.expect(200), volume);
    let used = place.act("DELETE", &path).await.problem();
    assert!(used.starts_with("409 VolumeInUse: "), "{used}");
}
