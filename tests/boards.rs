//! The files of `board/` and the cross-compilation file are ones that the program and its tools can read.

use std::fs;
use std::path::{Path, PathBuf};

use visaged::config::{Config, SourceConfig};

const BOARDS: [&str; 6] =
    ["generic-arm64", "jetson-nano", "jetson-orin-nano", "qemu-virt", "raspberry-pi-4", "raspberry-pi-5"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn board(name: &str) -> PathBuf {
    root().join("board").join(name)
}

#[test]
fn every_folder_of_board_is_one_of_the_boards() {
    let mut found: Vec<String> = fs::read_dir(root().join("board"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, BOARDS);
}

#[test]
fn every_boards_configuration_is_valid_and_opens_a_camera() {
    for name in BOARDS {
        let config =
            Config::load(Some(&board(name).join("visaged.toml")), []).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(matches!(config.camera.source, SourceConfig::V4l2 { .. }), "{name}: {:?}", config.camera.source);
        assert!(config.mqtt.is_some(), "{name}: no broker");
    }
}

#[test]
fn every_boards_camera_is_the_one_that_its_udev_rules_name() {
    for name in BOARDS {
        let config = Config::load(Some(&board(name).join("visaged.toml")), []).unwrap();
        let SourceConfig::V4l2 { device, .. } = config.camera.source else { panic!("{name}: no camera") };
        let link = device.strip_prefix("/dev").unwrap().to_str().unwrap();
        let rules = fs::read_to_string(board(name).join("99-visaged.rules")).unwrap();
        assert!(rules.contains(&format!("SYMLINK+=\"{link}\"")), "{name}: no rule makes {}", device.display());
    }
}

#[test]
fn every_board_has_a_page_that_says_what_is_untested() {
    for name in BOARDS {
        let page = fs::read_to_string(board(name).join("README.md")).unwrap();
        assert!(page.contains("## Camera") && page.contains("## What is tested, and what is not"), "{name}");
    }
}

#[test]
fn the_cross_file_covers_both_arm_targets() {
    let file: toml::Table = fs::read_to_string(root().join("cross.toml")).unwrap().parse().unwrap();
    for target in ["aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf"] {
        let steps = file["target"][target]["pre-build"].as_array().unwrap();
        assert!(steps.iter().any(|s| s.as_str().unwrap().contains("libclang-dev")), "{target}: bindgen needs libclang");
    }
}
