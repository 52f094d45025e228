//! Puts optional model bundles into the program: those that `VISAGED_BUILD_BUNDLES` names when it is built, as in
//! `VISAGED_BUILD_BUNDLES=identity,makeup`. Without it there are none, and the program keeps within its bound of 40 MB: it says which
//! bundle is missing, and takes an installed one or a folder.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The constant of each bundle, and the bundle's folder.
const OPTIONAL: [(&str, &str); 2] = [("IDENTITY", "identity"), ("MAKEUP", "makeup")];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=VISAGED_BUILD_BUNDLES");
    let wanted = env::var("VISAGED_BUILD_BUNDLES").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !OPTIONAL.iter().any(|(_, known)| known == *name)) {
        return Err(io::Error::other(format!("VISAGED_BUILD_BUNDLES: no optional bundle is called {unknown}")));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let text: String = OPTIONAL
        .iter()
        .map(|(constant, name)| line(constant, &root.join("models-quantized").join(name), wanted.contains(name)))
        .collect();
    fs::write(out.join("optional_bundles.rs"), text)
}

fn line(constant: &str, folder: &Path, wanted: bool) -> String {
    if wanted {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let [manifest, model, avatars] = ["manifest.toml", "model.onnx", "avatars.png"].map(|file| folder.join(file));
    let avatars = if avatars.exists() { format!("Some(include_bytes!({avatars:?}))") } else { "None".into() };
    let (manifest, model) = (format!("include_str!({manifest:?})"), format!("include_bytes!({model:?})"));
    let value = match wanted {
        true => format!("Some(Inside {{ manifest: {manifest}, model: {model}, avatars: {avatars} }})"),
        false => "None".into(),
    };
    format!("pub(super) const {constant}: Option<Inside> = {value};\n")
}
