//! The committed header is what cbindgen makes of the sources.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::path::Path;
use std::{env, fs};

/// The files that hold the interface.
const FILES: [&str; 5] =
    ["src/lib.rs", "src/error.rs", "src/call.rs", "src/serve.rs", "src/context.rs"];

#[test]
fn the_header_is_that_of_the_sources() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let sources = FILES
        .iter()
        .fold(cbindgen::Builder::new(), |builder, file| builder.with_src(here.join(file)));
    let mut made = Vec::new();
    sources.with_config(config).generate().unwrap().write(&mut made);
    // For C the conditions of safe use are plain sentences.
    let made = String::from_utf8(made).unwrap().replace(" * # Safety\n *\n", "");
    let path = here.join("include/middlecon.h");
    if env::var_os("KUMO_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == committed,
        "include/middlecon.h is not that of the sources; make it anew with \
         KUMO_WRITE_HEADER=1 cargo test -p kumo-ffi --test header, and commit it"
    );
    let sources = FILES.map(|file| fs::read_to_string(here.join(file)).unwrap()).concat();
    let mut functions = 0;
    for function in sources.split("#[unsafe(no_mangle)]").skip(1) {
        let name = function.split("fn ").nth(1).unwrap().split('(').next().unwrap();
        assert!(made.contains(&format!("{name}(")), "{name} is not in the header");
        functions += 1;
    }
    assert!(functions > 20, "there are functions");
}

#[test]
fn the_name_of_the_library_has_the_version_of_the_interface() {
    let build = include_str!("../build.rs");
    let source = include_str!("../src/lib.rs");
    let version = source.split("MC_ABI_VERSION: u32 = ").nth(1).unwrap().split(';').next().unwrap();
    assert!(build.contains(&format!("\"libmiddlecon.so.{version}\"")), "for version {version}");
}
