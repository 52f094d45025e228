//! Puts the optional model bundles into the program: those whose folders are in `models-quantized/` when it is built. To add the
//! folder is the only step; without it the program says which bundle is missing, and takes an installed one or a folder.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The constant of each bundle, and the bundle's folder.
const OPTIONAL: [(&str, &str); 2] = [("IDENTITY", "identity"), ("MAKEUP", "makeup")];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    // The folder above them: cargo takes one that is missing for one that has changed.
    println!("cargo:rerun-if-changed=models-quantized");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let text: String =
        OPTIONAL.iter().map(|(constant, name)| line(constant, &root.join("models-quantized").join(name))).collect();
    fs::write(out.join("optional_bundles.rs"), text)
}

fn line(constant: &str, folder: &Path) -> String {
    let (manifest, model) = (folder.join("manifest.toml"), folder.join("model.onnx"));
    let value = match manifest.is_file() {
        true => format!("Some((include_str!({manifest:?}), include_bytes!({model:?})))"),
        false => "None".into(),
    };
    format!("pub(super) const {constant}: Option<(&str, &[u8])> = {value};\n")
}
