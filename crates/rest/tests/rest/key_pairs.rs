//! Key pairs over the wire.

use serde_json::json;

use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn the_private_half_is_seen_once() {
    let place = Place::new().await;
    // A name with everything that a path could stumble over.
    let made = json!({"name": "import", "kind": "ed25519", "format": "ppk", "tags": {"a": "b"}});
    let made = place.post("/v1/key-pairs", &made).await.expect(201);
    assert!(made["private_key"].as_str().unwrap().starts_with("PuTTY-User-Key-File-3: "), "{made}");
    let odd = json!({"name": "a/b?c#d%e f", "kind": "ed25519"});
    let odd = place.post("/v1/key-pairs", &odd).await.expect(201);
    assert!(odd["private_key"].as_str().unwrap().starts_with("-----BEGIN "), "{odd}");
    let shown = place.get("/v1/key-pairs/a%2Fb%3Fc%23d%25e%20f").await.expect(200);
    assert_eq!(shown, odd["key_pair"]);
    assert!(shown.get("private_key").is_none());
    let id = shown["key_pair_id"].as_str().unwrap();
    assert_eq!(place.get(&format!("/v1/key-pairs/{id}")).await.expect(200), shown);
    assert_eq!(place.get("/v1/key-pairs").await.expect(200)["key_pairs"].as_array().unwrap().len(), 2);

    let copy = json!({"name": "copy", "public_key": shown["public_key"]});
    let copy = place.post("/v1/key-pair-imports", &copy).await.expect(201);
    assert_eq!(copy["fingerprint"], shown["fingerprint"]);
    let twice = place.post("/v1/key-pairs", &json!({"name": "import", "kind": "ed25519"})).await.problem();
    assert!(twice.starts_with("409 InvalidKeyPair.Duplicate: "), "{twice}");
    let nonsense = json!({"name": "nonsense", "public_key": "ssh-rsa nonsense"});
    let nonsense = place.post("/v1/key-pair-imports", &nonsense).await.problem();
    assert!(nonsense.starts_with("400 InvalidKey.Format: "), "{nonsense}");

    place.act("DELETE", "/v1/key-pairs/import").await.expect(204);
    let gone = place.act("DELETE", "/v1/key-pairs/import").await.problem();
    assert!(gone.starts_with("404 InvalidKeyPair.NotFound: "), "{gone}");
}
