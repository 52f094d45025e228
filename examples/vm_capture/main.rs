//! The capture code against real drivers, inside the virtual machine that `tests/vm/run` starts: the kernel's `vivid`,
//! and its `uvcvideo` talking to a camera that this program itself plays. Prints `ok NAME` or `FAIL NAME: why` for each
//! check; the exit status is 0 where all are ok.

mod checks;
mod controls;
mod gadget;
mod uvc;
mod vivid;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["vivid", device, output] => checks::run(|checks| vivid::check(checks, device.as_ref(), output.as_ref())),
        ["uvc", device] => checks::run(|checks| uvc::check(checks, device.as_ref())),
        ["camera"] => match gadget::play() {
            Ok(never) => match never {},
            Err(error) => {
                println!("camera: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: vm_capture vivid CAPTURE-DEVICE OUTPUT-DEVICE | uvc DEVICE | camera");
            ExitCode::from(2)
        }
    }
}
