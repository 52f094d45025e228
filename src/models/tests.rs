use std::fs;

use super::*;

/// A copy of a built-in bundle in a folder, as an operator would install it.
fn copied(task: Task) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::built_in(task).unwrap();
    fs::write(folder.path().join(MODEL), bundle.model()).unwrap();
    let mut manifest = bundle.manifest().clone();
    manifest.files.retain(|f| f.path == MODEL);
    write_manifest(folder.path(), &manifest);
    folder
}

fn write_manifest(folder: &Path, manifest: &Manifest) {
    fs::write(folder.join(MANIFEST), toml::to_string(manifest).unwrap()).unwrap();
}

fn changed(task: Task, change: impl FnOnce(&mut Manifest)) -> (tempfile::TempDir, BundleError) {
    let folder = copied(task);
    let mut manifest = Bundle::built_in(task).unwrap().manifest().clone();
    manifest.files.retain(|f| f.path == MODEL);
    change(&mut manifest);
    write_manifest(folder.path(), &manifest);
    let error = Bundle::load(task, Some(folder.path())).unwrap_err();
    (folder, error)
}

#[test]
fn the_built_in_bundles_verify_and_serve_their_tasks() {
    for task in Task::ALL.into_iter().filter(|task| Bundle::is_built_in(*task)) {
        let bundle = Bundle::load(task, None).unwrap();
        assert_eq!(bundle.manifest().name, task.name());
        assert_eq!(bundle.model_sha256().len(), 64);
    }
}

#[test]
fn a_bundle_copied_to_a_folder_is_the_same_bundle() {
    for task in Task::ALL.into_iter().filter(|task| Bundle::is_built_in(*task)) {
        let folder = copied(task);
        let bundle = Bundle::load(task, Some(folder.path())).unwrap();
        assert_eq!(bundle.model(), Bundle::built_in(task).unwrap().model());
        assert_eq!(*bundle.origin(), Origin::Folder(folder.path().to_owned()));
    }
}

#[test]
fn a_missing_folder_manifest_or_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Bundle::open(&folder.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere") && error.to_string().contains("manifest.toml"), "{error}");
    let folder = copied(Task::Derl);
    fs::remove_file(folder.path().join(MODEL)).unwrap();
    let error = Bundle::open(folder.path()).unwrap_err();
    assert!(matches!(&error.fault, BundleFault::Read { file, .. } if file == MODEL), "{error}");
}

#[test]
fn one_flipped_bit_in_the_model_is_a_wrong_hash() {
    let folder = copied(Task::Detector);
    let path = folder.path().join(MODEL);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Bundle::open(folder.path()).unwrap_err();
    assert!(matches!(&error.fault, BundleFault::Hash { file, .. } if file == MODEL), "{error}");
}

#[test]
fn a_truncated_or_grown_model_is_a_wrong_size() {
    for change in [|bytes: &mut Vec<u8>| bytes.truncate(100), |bytes: &mut Vec<u8>| bytes.push(0)] {
        let folder = copied(Task::Detector);
        let path = folder.path().join(MODEL);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = Bundle::open(folder.path()).unwrap_err();
        assert!(matches!(error.fault, BundleFault::Size { .. }), "{error}");
    }
}

#[test]
fn another_schema_is_refused_before_anything_else_is_read() {
    let folder = copied(Task::Derl);
    fs::write(folder.path().join(MANIFEST), "schema = 2\nnothing = \"else\"\n").unwrap();
    let error = Bundle::open(folder.path()).unwrap_err();
    assert!(matches!(error.fault, BundleFault::Schema { found: 2, supported: 1 }), "{error}");
}

#[test]
fn a_manifest_that_is_no_toml_or_lacks_a_key_says_so_in_one_line() {
    for text in ["schema = 1\nname = ", "schema = 1\nname = \"derl\"\n", "schema = \"one\"", "\u{0}", ""] {
        let folder = copied(Task::Derl);
        fs::write(folder.path().join(MANIFEST), text).unwrap();
        let error = Bundle::open(folder.path()).unwrap_err();
        assert!(matches!(error.fault, BundleFault::Syntax(_)), "{text:?}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
    let folder = copied(Task::Derl);
    fs::write(folder.path().join(MANIFEST), [0xff, 0xfe, 0x00]).unwrap();
    assert!(matches!(Bundle::open(folder.path()).unwrap_err().fault, BundleFault::Syntax(_)));
}

#[test]
fn a_version_of_another_interface_is_refused_with_both_versions() {
    for version in ["9.1.0", "0.99.0"] {
        let (_folder, error) = changed(Task::Derl, |m| m.version = version.into());
        assert!(matches!(error.fault, BundleFault::Version { .. }), "{error}");
        assert!(error.to_string().contains(version));
    }
    for version in ["1", "a.b.c", "1.2.3.4", ""] {
        let (_folder, error) = changed(Task::Derl, |m| m.version = version.into());
        assert!(matches!(error.fault, BundleFault::Value { .. }), "{version}: {error}");
    }
}

#[test]
fn a_bundle_for_another_task_is_refused() {
    let folder = copied(Task::Detector);
    let error = Bundle::load(Task::Derl, Some(folder.path())).unwrap_err();
    assert!(matches!(error.fault, BundleFault::Task { expected: Task::Derl, found: Task::Detector }), "{error}");
}

#[test]
fn wrong_shapes_name_the_tensor_and_both_shapes() {
    let (_folder, error) = changed(Task::Derl, |m| m.inputs[0].shape = vec![1, 3, 64, 64]);
    assert!(error.to_string().contains("[1, 3, 64, 64]") && error.to_string().contains("[1, 1, 64, 64]"), "{error}");
    let (_folder, error) = changed(Task::Detector, |m| m.outputs[0].shape = vec![1, 0, 7]);
    assert!(matches!(error.fault, BundleFault::Shape { .. }), "{error}");
    let (_folder, error) = changed(Task::Detector, |m| m.outputs.clear());
    assert!(error.to_string().contains("cls_8"), "{error}");
}

#[test]
fn paths_that_leave_the_folder_are_refused() {
    for path in ["../model.onnx", "/etc/hostname", "a/../../b", ".", "", "./model.onnx"] {
        let (_folder, error) = changed(Task::Derl, |m| m.files[0].path = path.into());
        assert!(matches!(error.fault, BundleFault::UnsafePath { .. }), "{path}: {error}");
    }
}

#[test]
fn a_model_that_is_not_listed_is_refused() {
    let (_folder, error) = changed(Task::Derl, |m| m.files.clear());
    assert!(matches!(error.fault, BundleFault::Unlisted(_)), "{error}");
}

#[test]
fn labels_and_numbers_out_of_range_are_named() {
    let (_folder, error) = changed(Task::Derl, |m| m.labels[3] = m.labels[2].clone());
    assert!(error.to_string().contains("`labels`"), "{error}");
    let (_folder, error) = changed(Task::Derl, |m| m.temperature = Some(0.0));
    assert!(error.to_string().contains("temperature"), "{error}");
    let (_folder, error) = changed(Task::Derl, |m| m.inputs[0].eps = Some(f32::NAN));
    assert!(error.to_string().contains("eps"), "{error}");
    let (_folder, error) = changed(Task::Derl, |m| m.neutrality.as_mut().unwrap().ceiling = -1.0);
    assert!(error.to_string().contains("neutrality"), "{error}");
    let (_folder, error) = changed(Task::Derl, |m| m.neutrality.as_mut().unwrap().energy_index = 99);
    assert!(error.to_string().contains("energy_index"), "{error}");
    let (_folder, error) = changed(Task::Detector, |m| m.inputs[0].colour = "rgb".into());
    assert!(error.to_string().contains("colour"), "{error}");
}

#[test]
fn an_optional_bundle_is_inside_where_the_build_asked_for_it_and_else_says_what_to_do() {
    let asked = option_env!("VISAGED_BUILD_BUNDLES").unwrap_or_default();
    for task in Task::ALL {
        let there = !task.is_optional() || asked.split(',').any(|name| name.trim() == task.name());
        assert_eq!(Bundle::is_built_in(task), there, "{task}");
        if !there {
            let error = Bundle::load(task, None).unwrap_err();
            assert!(matches!(error.fault, BundleFault::Absent) && error.to_string().contains(task.name()), "{error}");
            assert_eq!(Bundle::built_in_version(task).unwrap(), Version::NONE);
        }
    }
}

impl Bundle {
    /// The bundle with other avatars, for tests.
    pub(crate) fn with_avatars(mut self, png: Vec<u8>) -> Self {
        self.avatars = Some(png.into());
        self
    }

    /// The bundle with another manifest, for tests.
    pub(crate) fn changed(mut self, change: impl FnOnce(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self
    }
}

fn refused(task: Task, change: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = crate::synthesis::makeup::tests::test_bundle(task).manifest().clone();
    change(&mut manifest);
    let fault = match task {
        Task::Identity => IdentityManifest::from_manifest(&manifest).map(drop),
        _ => MakeupManifest::from_manifest(&manifest).map(drop),
    };
    fault.unwrap_err().to_string()
}

#[test]
fn an_identity_or_make_up_bundle_with_other_tensors_or_thresholds_is_refused_by_name() {
    let refused_identity = |change: fn(&mut Manifest)| refused(Task::Identity, change);
    assert!(refused_identity(|m| m.verification = None).contains("verification"));
    assert!(refused_identity(|m| m.verification.as_mut().unwrap().threshold_far_1e2 = 0.95).contains("far_1e3"));
    assert!(refused_identity(|m| m.verification.as_mut().unwrap().threshold_far_1e3 = f32::NAN).contains("far_1e3"));
    assert!(refused_identity(|m| m.inputs[0].eps = None).contains("eps"));
    assert!(refused_identity(|m| m.inputs[0].shape[3] = 128).contains("face"));
    assert!(refused_identity(|m| m.outputs[0].shape[1] = 256).contains("embedding"));
    assert!(refused_identity(|m| m.outputs[1].shape[1] = 1).contains("change"));
    assert!(refused_identity(|m| m.inputs.retain(|input| input.name != "who")).contains("who"));
    assert!(refused_identity(|m| m.avatars.as_mut().unwrap().count = 0).contains("avatars.count"));
    assert!(refused_identity(|m| m.avatars.as_mut().unwrap().count = 65).contains("avatars.count"));
    assert!(refused_identity(|m| m.outputs.truncate(1)).contains("no generator"));
    let refused_makeup = |change: fn(&mut Manifest)| refused(Task::Makeup, change);
    assert!(refused_makeup(|m| drop(m.inputs.pop())).contains("reference"));
    assert!(refused_makeup(|m| m.inputs[1].colour = "bgr".into()).contains("reference.colour"));
    assert!(refused_makeup(|m| drop(m.outputs.pop())).contains("bare"));
    assert!(refused_makeup(|m| m.outputs[0].shape[1] = 1).contains("applied"));
    assert!(refused_makeup(|m| m.task = Task::Identity).contains("makeup"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_manifest_parser_panic(text in "(schema = 1\n)?[ -~\n]{0,200}") {
        let _ = Manifest::parse(&text);
    }
}
