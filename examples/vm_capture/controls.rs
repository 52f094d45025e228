//! Sets a control by its name. A walk of our own: the one in the crate `v4l` panics on types that vivid has.

use std::io;
use std::path::Path;

use v4l::prelude::Device;
use v4l::v4l_sys::{v4l2_ext_control, v4l2_ext_controls, v4l2_query_ext_ctrl};
use v4l::v4l2::{self, vidioc};

const NEXT: u32 = 0x8000_0000 | 0x4000_0000;

fn ioctl<T>(device: &Device, request: vidioc::_IOC_TYPE, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is the structure that `request` reads and writes, and outlives the call.
    unsafe { v4l2::ioctl(device.handle().fd(), request, std::ptr::from_mut(argument).cast()) }
}

/// Sets the control `name` of `device`, which is closed again before this returns.
pub(crate) fn set(device: &Path, name: &str, value: i32) -> io::Result<()> {
    let device = Device::with_path(device)?;
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut query: v4l2_query_ext_ctrl = unsafe { std::mem::zeroed() };
    loop {
        query.id |= NEXT;
        if ioctl(&device, vidioc::VIDIOC_QUERY_EXT_CTRL, &mut query).is_err() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no control {name:?}")));
        }
        let bytes: Vec<u8> = query.name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        if bytes == name.as_bytes() {
            break;
        }
    }
    // SAFETY: as above.
    let (mut control, mut controls): (v4l2_ext_control, v4l2_ext_controls) = unsafe { std::mem::zeroed() };
    control.id = query.id;
    control.__bindgen_anon_1.value = value;
    controls.count = 1;
    controls.controls = &raw mut control;
    ioctl(&device, vidioc::VIDIOC_S_EXT_CTRLS, &mut controls)
}
