//! The image of the program under test, on the local cluster's node.

use std::{path::Path, process::Output};

use tokio::process::Command;

/// Makes an image of the binary, and loads it into the node of a cluster.
pub async fn load_image(cluster: &str, name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (binary, image) = (folder.path().join("tokencache"), folder.path().join("image.tar"));
    // Without its debugging information, which is most of it.
    let strip = Command::new("strip").arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_tokencache")).output();
    if !strip.await.is_ok_and(|output| output.status.success()) {
        std::fs::copy(env!("CARGO_BIN_EXE_tokencache"), &binary).expect("a copy");
    }
    let hack = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("hack").join(name);
    let made = Command::new(hack("image.sh")).arg(name).arg(&image).arg("--bin").arg(&binary).output().await;
    assert_success("hack/image.sh", made);
    let load = Command::new(hack("cluster.sh")).args(["load-image", "--name", cluster]).arg(&image).output().await;
    assert_success("hack/cluster.sh load-image", load);
}

fn assert_success(what: &str, output: std::io::Result<Output>) {
    let output = output.expect(what);
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
