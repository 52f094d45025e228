//! Installing, trying, keeping, giving up and rolling back bundles, with the real binary as an operator uses it.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);

/// One device and its operator: a store, a configuration, a key.
struct Bench {
    folder: tempfile::TempDir,
    keys: minisign::KeyPair,
}

impl Bench {
    fn new(trial_s: u32) -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            keys: minisign::KeyPair::generate_unencrypted_keypair().unwrap(),
        };
        bench.configure(trial_s, &format!("keys = [\"{}\"]", bench.keys.pk.to_base64()));
        bench
    }

    fn configure(&self, trial_s: u32, models: &str) {
        let text = format!(
            "[models]\nstore = \"{}\"\ntrial_s = {trial_s}\n{models}\n[mqtt]\nenabled = false\n\
             [camera]\nsource = \"clip\"\npath = \"{}/assets/demo.gif\"\n",
            self.path("store").display(),
            env!("CARGO_MANIFEST_DIR"),
        );
        fs::write(self.path("visaged.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn visaged(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visaged"));
        let environment = [("PATH", "/usr/bin:/bin".into()), ("VISAGED_CONFIG", self.path("visaged.toml"))];
        command.args(args).env_clear().envs(environment).stdin(Stdio::null());
        command
    }

    /// The built-in bundle as another version, packed and signed; `change` may do something to its folder first.
    fn archive(&self, task: &str, version: &str, change: impl FnOnce(&Path)) -> String {
        let folder = self.path(&format!("{task}-{version}"));
        fs::create_dir_all(&folder).unwrap();
        // Optional bundles need not be there: a stand-in serves as well.
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let place = if ["identity", "makeup"].contains(&task) { "tests/data/bundles" } else { "models-quantized" };
        let source = root.join(place).join(task);
        for file in fs::read_dir(&source).unwrap() {
            let file = file.unwrap();
            if file.file_name() != "CARD.md" {
                fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        let manifest = fs::read_to_string(source.join("manifest.toml")).unwrap();
        let lines = manifest.lines().map(|line| match line.starts_with("version = ") {
            true => format!("version = \"{version}\"\n"),
            false => format!("{line}\n"),
        });
        fs::write(folder.join("manifest.toml"), lines.collect::<String>()).unwrap();
        change(&folder);
        let archive = self.path(&format!("{task}-{version}.tar")).display().to_string();
        let packed = self.visaged(&["models", "pack", &folder.display().to_string(), "-o", &archive]);
        assert!(packed.status.success(), "{}", stderr(&packed));
        self.sign(&archive, &format!("visaged:{task}:{version}"));
        archive
    }

    fn sign(&self, archive: &str, comment: &str) {
        let bytes = Cursor::new(fs::read(archive).unwrap());
        let signature = minisign::sign(Some(&self.keys.pk), &self.keys.sk, bytes, Some(comment), None).unwrap();
        fs::write(format!("{archive}.minisig"), signature.into_string()).unwrap();
    }

    /// `origin version state in_use` of each line about `task`.
    fn listed(&self, task: &str) -> Vec<String> {
        let output = self.visaged(&["models", "list", "--json"]);
        let lines = output.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        let text = |line: &Value, key: &str| line[key].to_string().trim_matches('"').to_string();
        let ours = lines.filter(|line| text(line, "origin").ends_with(task));
        ours.map(|l| ["origin", "version", "state", "in_use"].map(|key| text(&l, key)).join(" ")).collect()
    }

    fn state(&self, task: &str) -> Value {
        let path = self.path("store").join(task).join("state.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn daemon(&self) -> Daemon {
        let log = fs::File::create(self.path("log")).unwrap();
        Daemon(self.command(&["run"]).stderr(log).stdout(Stdio::null()).spawn().unwrap())
    }

    fn until(&self, what: &str, mut done: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + LONG;
        loop {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            if done(&log) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ended, whatever happens.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    let lines: Vec<String> = stderr(output).lines().filter(|l| l.starts_with("visaged: ")).map(Into::into).collect();
    assert!(lines.len() == 1 && lines[0].contains(says), "{says}: {}", stderr(output));
}

#[test]
fn a_new_bundle_is_installed_kept_after_its_trial_and_rolled_back() {
    let bench = Bench::new(1);
    let archive = bench.archive("derl", "0.1.90", |_| ());
    let installed = bench.visaged(&["models", "install", &archive, "--json"]);
    assert!(installed.status.success(), "{}", stderr(&installed));
    let result: Value = serde_json::from_slice(&installed.stdout).unwrap();
    assert_eq!((&result["task"], &result["version"]), (&"derl".into(), &"0.1.90".into()));
    let built_in = result["previous"].as_str().unwrap();
    assert_eq!(
        bench.listed("derl"),
        ["installed derl 0.1.90 trial true".to_string(), format!("built-in derl {built_in} good false")]
    );

    let daemon = bench.daemon();
    bench.until("the trial's end", |_| bench.state("derl")["trial"].is_null());
    drop(daemon);
    assert_eq!(bench.state("derl")["current"]["slot"]["version"], "0.1.90");

    fails(&bench.visaged(&["models", "install", &archive]), 1, "not newer than 0.1.90");
    let rolled = bench.visaged(&["models", "rollback", "derl"]);
    let said = String::from_utf8_lossy(&rolled.stdout).into_owned();
    assert!(said.contains(&format!("derl {built_in} runs")) && said.contains("0.1.90"), "{said}");
    fails(&bench.visaged(&["models", "install", &archive]), 1, "not newer than 0.1.90");
    fails(&bench.visaged(&["models", "rollback", "derl"]), 1, "nothing to roll back to");
}

#[test]
fn an_optional_bundle_is_installed_used_by_commands_kept_unloaded_and_rolled_back() {
    let bench = Bench::new(3600);
    let archive = bench.archive("identity", "0.1.90", |_| ());
    let installed = bench.visaged(&["models", "install", &archive]);
    assert!(installed.status.success(), "{}", stderr(&installed));
    assert_eq!(bench.listed("identity")[0], "installed identity 0.1.90 trial true");
    let face = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/sfhq_0000.jpg").display().to_string();
    let embedded = bench.visaged(&["embed", "--json", &face]);
    assert!(embedded.status.success(), "{}", stderr(&embedded));

    // The daemon does not load it, so nothing is left that could prove it.
    let daemon = bench.daemon();
    bench.until("frames", |log| log.contains("frames come"));
    bench.until("the trial's end", |_| bench.state("identity")["trial"].is_null());
    drop(daemon);
    assert_eq!(bench.listed("identity")[0], "installed identity 0.1.90 good true");

    let rolled = bench.visaged(&["models", "rollback", "identity"]);
    assert!(rolled.status.success(), "{}", stderr(&rolled));
    assert!(
        bench.listed("identity").iter().all(|line| !line.contains("0.1.90 good")),
        "{:?}",
        bench.listed("identity")
    );
}

#[test]
fn a_try_on_without_a_bundle_or_with_one_is_told_by_check() {
    let bench = Bench::new(60);
    let made_up = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles/makeup");
    let check = |models: &str| {
        bench.configure(60, &format!("{models}\n[web]\nenabled = true\nlisten = \"127.0.0.1:0\"\ntry_on = true"));
        String::from_utf8(bench.visaged(&["check"]).stdout).unwrap()
    };
    let there = option_env!("VISAGED_BUILD_BUNDLES").unwrap_or_default().contains("makeup");
    let said = check("");
    assert!(there || said.contains("FAILS  models") && said.contains("web.try_on"), "{said}");
    // A try-on that can give faces has something to offer.
    let identity = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles/identity");
    let said = check(&format!("identity = {identity:?}"));
    assert!(said.contains("works  models") && said.contains("identity 0.1.0"), "{said}");
    let said = check(&format!("identity = {made_up:?}"));
    assert!(said.contains("FAILS  models") && said.contains("identity bundle is needed"), "{said}");
    let said = check(&format!("makeup = {made_up:?}"));
    assert!(said.contains("works  models") && said.contains("makeup 0.1.0"), "{said}");
}

#[test]
fn a_daemon_killed_during_a_trial_starts_with_the_former_bundle_and_says_so() {
    let bench = Bench::new(3600);
    let archive = bench.archive("detector", "0.1.90", |_| ());
    assert!(bench.visaged(&["models", "install", &archive]).status.success());
    let daemon = bench.daemon();
    bench.until("frames", |log| log.contains("frames come"));
    assert_eq!(bench.state("detector")["trial"]["starts"], 1);
    drop(daemon);

    let _daemon = bench.daemon();
    bench.until("the words", |log| {
        log.contains("detector 0.1.90 was given up") && log.to_lowercase().contains("degraded")
    });
    assert_eq!(bench.state("detector")["current"], "built-in");
    let listed = bench.listed("detector");
    assert!(listed[0].starts_with("installed detector 0.1.90 bad") && listed[1].ends_with("good true"), "{listed:?}");
}

#[test]
fn a_bundle_that_does_not_work_is_refused_by_its_self_test_and_leaves_nothing() {
    let bench = Bench::new(60);
    // Right hashes, and no network at all.
    let archive = bench.archive("derl", "0.1.90", |folder| {
        let model = b"this is no graph";
        fs::write(folder.join("model.onnx"), model).unwrap();
        let manifest = fs::read_to_string(folder.join("manifest.toml")).unwrap();
        let sha256 = sha2_hex(model);
        let mut in_model = false;
        let lines = manifest.lines().map(|line| {
            in_model |= line == "path = \"model.onnx\"";
            let changed = match (in_model, line.split(" = ").next()) {
                (true, Some("sha256")) => format!("sha256 = \"{sha256}\""),
                (true, Some("bytes")) => {
                    in_model = false;
                    format!("bytes = {}", model.len())
                }
                _ => line.to_string(),
            };
            changed + "\n"
        });
        fs::write(folder.join("manifest.toml"), lines.collect::<String>()).unwrap();
    });
    fails(&bench.visaged(&["models", "install", &archive]), 1, "self-test of derl 0.1.90 failed");
    assert!(!bench.path("store/derl/state.json").exists());
    assert!(!bench.path("store/derl/candidate").exists());
}

fn sha2_hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn wrong_signatures_are_exit_1_and_wrong_usage_or_configuration_is_exit_2() {
    let bench = Bench::new(60);
    let archive = bench.archive("detector", "0.1.90", |_| ());
    bench.sign(&archive, "visaged:derl:0.1.90");
    fails(&bench.visaged(&["models", "install", &archive]), 1, "task");
    fs::write(format!("{archive}.minisig"), "nothing").unwrap();
    fails(&bench.visaged(&["models", "install", &archive]), 1, "minisign signature");
    fs::remove_file(format!("{archive}.minisig")).unwrap();
    fails(&bench.visaged(&["models", "install", &archive]), 1, "--signature");
    fails(&bench.visaged(&["models", "install", "https://127.0.0.1:1/a.tar"]), 2, "--signature");
    fails(&bench.visaged(&["models", "install", "http://127.0.0.1:1/a.tar"]), 2, "https://");
    assert_eq!(bench.visaged(&["models", "rollback", "nose"]).status.code(), Some(2));

    bench.sign(&archive, "visaged:detector:0.1.90");
    bench.configure(60, "keys = []");
    fails(&bench.visaged(&["models", "install", &archive]), 2, "[models] keys");
    bench.configure(60, "keys = [\"RWnonsense\"]");
    fails(&bench.visaged(&["models", "install", &archive]), 2, "models.keys");
    assert!(!bench.path("store/detector").exists());
}

#[test]
fn a_configured_folder_goes_over_the_store() {
    let bench = Bench::new(60);
    let archive = bench.archive("detector", "0.1.90", |_| ());
    assert!(bench.visaged(&["models", "install", &archive]).status.success());
    let folder = format!("detector = \"{}\"", bench.path("detector-0.1.90").display());
    bench.configure(60, &folder);
    let checked = bench.visaged(&["check", "--json"]);
    let findings: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let models = findings["findings"].as_array().unwrap().iter().find(|f| f["part"] == "models").unwrap();
    assert!(models["detail"].as_str().unwrap().contains("(/"), "{models}");
    let daemon = bench.daemon();
    bench.until("frames", |log| log.contains("frames come"));
    drop(daemon);
    assert_eq!(bench.state("detector")["trial"]["starts"], 0, "the store was not asked");
}

/// Root installs for the daemon's user. Where the tests are not root's, or others may not reach the program, there is nothing to try.
#[test]
fn what_root_installs_is_done_as_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    const NOBODY: u32 = 65_534;
    let program = Path::new(env!("CARGO_BIN_EXE_visaged"));
    let reachable = program.ancestors().all(|path| fs::metadata(path).is_ok_and(|m| m.mode() & 0o001 != 0));
    let bench = Bench::new(60);
    if !reachable || chown(bench.folder.path(), Some(NOBODY), Some(NOBODY)).is_err() {
        return eprintln!("not root, or the program is out of reach: left out");
    }
    let archive = bench.archive("detector", "0.1.90", |_| ());
    let installed = bench.visaged(&["models", "install", &archive]);
    assert!(installed.status.success(), "{}", stderr(&installed));
    let mut folders = vec![bench.path("store")];
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).unwrap().uid(), NOBODY, "{}", folder.display());
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{}", entry.path().display());
            folders.extend(entry.path().is_dir().then(|| entry.path()));
        }
    }
    // What the daemon's user could have put there has no effect beyond what that user may do.
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "root's").unwrap();
    std::os::unix::fs::symlink(&secret, bench.path("store/detector/state.json.new")).unwrap();
    assert_eq!(bench.visaged(&["models", "rollback", "detector"]).status.code(), Some(1));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "root's");
}
