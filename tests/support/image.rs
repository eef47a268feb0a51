//! Images for the local cluster's node.

use std::{path::Path, process::Output};

use tokio::process::Command;

use super::binary;

/// Makes an image of the program under test, and loads it into the node of a cluster.
pub async fn load_program(cluster: &str, name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let stripped = folder.path().join("tokencache");
    // Without its debugging information, which is most of it.
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(binary()).output();
    if !strip.await.is_ok_and(|output| output.status.success()) {
        std::fs::copy(binary(), &stripped).expect("a copy");
    }
    load_image(cluster, name, &[("--bin", &stripped)]).await;
}

/// Makes an image of these parts by hack/image.sh, and loads it into the node of a cluster.
pub async fn load_image(cluster: &str, name: &str, parts: &[(&str, &Path)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image.tar");
    let hack = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("hack").join(name);
    let mut make = Command::new(hack("image.sh"));
    make.arg(name).arg(&image);
    for (flag, path) in parts {
        make.arg(flag).arg(path);
    }
    assert_success("hack/image.sh", make.output().await);
    let load = Command::new(hack("cluster.sh")).args(["load-image", "--name", cluster]).arg(&image).output().await;
    assert_success("hack/cluster.sh load-image", load);
}

fn assert_success(what: &str, output: std::io::Result<Output>) {
    let output = output.expect(what);
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
