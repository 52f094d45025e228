//! `visaged analyze`, `synth neutral` and `models` as a user runs them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const EMOTIONS: [&str; 8] = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"];

fn visaged(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_visaged")).args(args).output().unwrap()
}

fn faces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces")
}

fn face(name: &str) -> String {
    faces().join(name).display().to_string()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn check_face(face: &Value) {
    let sum: f64 = EMOTIONS.iter().map(|name| face["probabilities"][name].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-3, "{face}");
    assert!((0.0..=1.0).contains(&face["neutrality"].as_f64().unwrap()));
    assert!(EMOTIONS.contains(&face["emotion"].as_str().unwrap()));
}

#[test]
fn a_folder_gives_one_line_a_picture_sorted_by_name_with_the_contracts_keys() {
    let output = visaged(&["analyze", "--json", &faces().display().to_string()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = lines(&output);
    let names: Vec<String> = lines.iter().map(|l| l["path"].as_str().unwrap().into()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names.len(), 5);
    assert_eq!(names, sorted);
    for line in &lines {
        let mut keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["faces", "frame", "path"]);
        assert_eq!(line["frame"], 0);
        let [face] = line["faces"].as_array().unwrap().as_slice() else { panic!("one face: {line}") };
        assert_eq!(face["box"].as_array().unwrap().len(), 4);
        let landmarks = face["landmarks"].as_array().unwrap();
        assert_eq!(landmarks.len(), 5);
        assert!(landmarks[0][0].as_f64() < landmarks[1][0].as_f64(), "the eye on the image's left comes first");
        assert!((0.5..=1.0).contains(&face["score"].as_f64().unwrap()));
        check_face(face);
    }
}

#[test]
fn many_pictures_come_out_in_the_order_they_were_named_on_any_number_of_threads() {
    let (a, b, c) = (face("sfhq_0370.jpg"), face("london_004_smile.jpg"), face("sfhq_0000.jpg"));
    let mut args = vec!["analyze", "--json", "--crops", "--threads", "7"];
    for i in 0..60 {
        args.push([&a, &b, &c][i % 3]);
    }
    let output = visaged(&args);
    let lines = lines(&output);
    assert_eq!(lines.len(), 60);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["path"].as_str().unwrap(), [&a, &b, &c][i % 3]);
        assert_eq!(line["faces"], lines[i % 3]["faces"]);
    }
}

#[test]
fn crops_have_no_box_and_exactly_one_face() {
    let output = visaged(&["analyze", "--crops", "--json", &face("london_004_smile.jpg")]);
    let lines = lines(&output);
    assert_eq!(lines[0]["faces"].as_array().unwrap().len(), 1);
    assert_eq!(lines[0]["faces"][0]["box"], Value::Null);
    check_face(&lines[0]["faces"][0]);
}

#[test]
fn without_json_there_is_a_line_for_people() {
    let output = visaged(&["analyze", &face("london_004_smile.jpg")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("face at") && text.contains("happiness") && text.contains("neutrality"), "{text}");
}

#[test]
fn an_unreadable_picture_is_reported_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(faces().join("sfhq_0000.jpg"), folder.path().join("a.jpg")).unwrap();
    fs::write(folder.path().join("b.jpg"), "this is a text file\n").unwrap();
    fs::write(folder.path().join("c.png"), "").unwrap();
    let half = fs::read(faces().join("sfhq_0001.jpg")).unwrap();
    fs::write(folder.path().join("d.jpg"), &half[..half.len() / 2]).unwrap();
    fs::copy(faces().join("sfhq_0001.jpg"), folder.path().join("e.jpg")).unwrap();
    let place = folder.path().display().to_string();
    let output = visaged(&["analyze", "--json", &place, &format!("{place}/missing.jpg")]);
    assert_eq!(output.status.code(), Some(1));
    let names: Vec<String> = lines(&output).iter().map(|l| l["path"].as_str().unwrap().into()).collect();
    assert_eq!(names, [format!("{place}/a.jpg"), format!("{place}/e.jpg")]);
    let errors = stderr(&output);
    assert_eq!(errors.lines().count(), 4, "{errors}");
    for name in ["b.jpg", "c.png", "d.jpg", "missing.jpg"] {
        assert!(errors.contains(name), "{name} in {errors}");
    }
}

#[test]
fn a_folder_without_pictures_says_so_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
    let output = visaged(&["analyze", "--json", &folder.path().display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("no pictures"), "{}", stderr(&output));
}

#[test]
fn sub_folders_are_read_and_hidden_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b/deep", ".hidden"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::copy(faces().join("sfhq_0000.jpg"), folder.path().join(name).join("x.JPG")).unwrap();
    }
    fs::copy(faces().join("sfhq_0000.jpg"), folder.path().join("a.jpg")).unwrap();
    let output = visaged(&["analyze", "--crops", "--json", &folder.path().display().to_string()]);
    let names: Vec<String> = lines(&output).iter().map(|l| l["path"].as_str().unwrap().into()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with("a.jpg") && names[1].ends_with("b/deep/x.JPG"), "{names:?}");
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let picture = face("sfhq_0000.jpg");
    let mut args = vec!["analyze", "--crops", "--json"];
    args.extend(std::iter::repeat_n(picture.as_str(), 400));
    let mut child = Command::new(env!("CARGO_BIN_EXE_visaged"))
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn wrong_usage_is_exit_2() {
    assert_eq!(visaged(&["analyze"]).status.code(), Some(2));
    assert_eq!(visaged(&["analyze", "--no-such-option", "x"]).status.code(), Some(2));
}

#[test]
fn a_bundle_that_is_none_is_named_and_nothing_is_analysed() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    let output = visaged(&["analyze", "--derl", &place, "--crops", "--json", &face("sfhq_0000.jpg")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("manifest.toml"), "{}", stderr(&output));
}

#[test]
fn synth_neutral_changes_the_face_and_not_the_rest_and_marks_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let input = face("london_004_smile.jpg");
    let out = folder.path().join("calm.png");
    let output = visaged(&["synth", "neutral", &input, "-o", &out.display().to_string()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (before, after) = (image::open(&input).unwrap().to_rgb8(), image::open(&out).unwrap().to_rgb8());
    assert_eq!(before.dimensions(), after.dimensions());
    assert_ne!(before, after);
    for x in 0..before.width() {
        assert_eq!(before.get_pixel(x, 0), after.get_pixel(x, 0));
    }
    let bytes = fs::read(&out).unwrap();
    let mark = b"compositeWithTrainedAlgorithmicMedia";
    assert!(bytes.windows(mark.len()).any(|w| w == mark));
}

#[test]
fn synth_neutral_of_a_crop_is_128_px() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("calm.jpg").display().to_string();
    let output = visaged(&["synth", "neutral", "--crops", &face("sfhq_0370.jpg"), "-o", &out]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(image::image_dimensions(&out).unwrap(), (128, 128));
}

#[test]
fn synth_neutral_refuses_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let flat = folder.path().join("flat.png");
    image::RgbImage::from_pixel(300, 200, image::Rgb([90, 120, 90])).save(&flat).unwrap();
    let (flat, out) = (flat.display().to_string(), folder.path().join("out.png").display().to_string());
    let output = visaged(&["synth", "neutral", &flat, "-o", &out]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no face"), "{}", stderr(&output));
    let output = visaged(&["synth", "neutral", &flat, "-o", &folder.path().join("out.bmp").display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!Path::new(&out).exists());
}

#[test]
fn models_list_and_verify_speak_of_the_built_in_bundles() {
    let output = visaged(&["models", "list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("built-in detector") && text.contains("built-in derl"), "{text}");
    let output = visaged(&["models", "verify", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = lines(&output);
    let asked = option_env!("VISAGED_BUILD_BUNDLES").unwrap_or_default();
    let there = 2 + asked.split(',').filter(|name| !name.is_empty()).count();
    assert_eq!(lines.len(), there);
    assert!(lines.iter().all(|line| line["verified"] == true && line["error"] == Value::Null));
}

#[test]
fn every_bundle_of_the_repository_is_whole_and_passes_its_self_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized");
    let places: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path().display().to_string()).collect();
    assert!(places.len() >= 4);
    let output =
        visaged(&["models", "verify"].into_iter().chain(places.iter().map(String::as_str)).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_expression_network_for_small_boards_reads_faces_where_it_is_named() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized/derl-tiny").display().to_string();
    let output = visaged(&["analyze", "--json", "--derl", &tiny, &faces().display().to_string()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for line in lines(&output) {
        let face = &line["faces"][0];
        check_face(face);
        let path = line["path"].as_str().unwrap();
        for (what, emotion) in [("_smile", "happiness"), ("_neutral", "neutral")] {
            assert!(!path.contains(what) || face["emotion"] == emotion, "{line}");
        }
    }
}

#[test]
fn models_verify_of_a_damaged_bundle_fails_and_says_which_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized/detector");
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let place = folder.path().display().to_string();
    assert!(visaged(&["models", "verify", &place]).status.success());
    let model = folder.path().join("model.onnx");
    let mut bytes = fs::read(&model).unwrap();
    bytes[1000] ^= 0x10;
    fs::write(&model, bytes).unwrap();
    let output = visaged(&["models", "verify", &place]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("model.onnx") && stderr(&output).contains("SHA-256"), "{}", stderr(&output));
}
