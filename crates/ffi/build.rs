//! Gives the shared library the name that programs linked with it look for.

/// As `MC_ABI_VERSION`, which a test compares it with.
const SONAME: &str = "libmiddlecon.so.1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
}
