use ec2vmm_store::{BackupError, Store};

use crate::things::{all, put};

#[test]
fn a_backup_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["db", "copy"].map(|name| folder.path().join(name));
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    store.backup(&copy).unwrap();
    put(&store, "b", 2);
    let again = store.backup(&copy).unwrap_err();
    assert!(matches!(again, BackupError::Exists { .. }));

    let copy = Store::open(&copy).unwrap();
    assert_eq!(all(&copy), "a=1");
    put(&copy, "c", 3);
    assert_eq!(all(&store), "a=1 b=2");
}
