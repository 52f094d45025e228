//! LiteRT (once TensorFlow Lite) with XNNPACK, through the C interface of the library that `ai-edge-litert` brings.
//!
//! The interface changed before version 2.1.6 and may again; a library without one of the functions is refused by name.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::{Missing, Peer, PeerError, Tensor, check_length, locate};

const ENGINE: &str = "LiteRT";
const CPU: c_int = 1;
const HOST_MEMORY: c_int = 1;
const FLOAT32: c_int = 1;
const INT8: c_int = 9;
const READ: c_int = 0;
const WRITE: c_int = 1;

/// An object of the library's; which kind is in the name of whatever holds it.
type Object = *mut c_void;
/// 0 is success.
type Status = c_int;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Layout {
    /// The rank in the low 7 bits.
    rank: u32,
    dimensions: [i32; 8],
    strides: [u32; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ranked {
    element: c_int,
    layout: Layout,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    scale: f32,
    zero_point: i64,
}

macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Api {
            environment: Object,
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            fn symbols(library: &'static libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    environment: null_mut(),
                    // SAFETY: as the library's headers declare it; the library stays open.
                    $($name: *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }?,)*
                })
            }
        }
    };
}

functions! {
    create_environment = "LiteRtCreateEnvironment": fn(c_int, *const c_void, *mut Object) -> Status;
    create_model = "LiteRtCreateModelFromBuffer": fn(Object, *const c_void, usize, *mut Object) -> Status;
    destroy_model = "LiteRtDestroyModel": fn(Object);
    create_options = "LiteRtCreateOptions": fn(*mut Object) -> Status;
    destroy_options = "LiteRtDestroyOptions": fn(Object);
    set_accelerators = "LiteRtSetOptionsHardwareAccelerators": fn(Object, c_int) -> Status;
    create_opaque = "LiteRtCreateOpaqueOptions": fn(*const c_char, *mut c_void, unsafe extern "C" fn(*mut c_void), *mut Object) -> Status;
    add_opaque = "LiteRtAddOpaqueOptions": fn(Object, Object) -> Status;
    compile = "LiteRtCreateCompiledModel": fn(Object, Object, Object, *mut Object) -> Status;
    destroy_compiled = "LiteRtDestroyCompiledModel": fn(Object);
    is_fully_accelerated = "LiteRtCompiledModelIsFullyAccelerated": fn(Object, *mut bool) -> Status;
    signature = "LiteRtGetModelSignature": fn(Object, usize, *mut Object) -> Status;
    input_count = "LiteRtGetNumSignatureInputs": fn(Object, *mut usize) -> Status;
    output_count = "LiteRtGetNumSignatureOutputs": fn(Object, *mut usize) -> Status;
    input = "LiteRtGetSignatureInputTensorByIndex": fn(Object, usize, *mut Object) -> Status;
    output = "LiteRtGetSignatureOutputTensorByIndex": fn(Object, usize, *mut Object) -> Status;
    tensor_name = "LiteRtGetTensorName": fn(Object, *mut *const c_char) -> Status;
    tensor_type = "LiteRtGetRankedTensorType": fn(Object, *mut Ranked) -> Status;
    tensor_step = "LiteRtGetPerTensorQuantization": fn(Object, *mut Step) -> Status;
    create_buffer = "LiteRtCreateManagedTensorBuffer": fn(Object, c_int, *const Ranked, usize, *mut Object) -> Status;
    destroy_buffer = "LiteRtDestroyTensorBuffer": fn(Object);
    lock = "LiteRtLockTensorBuffer": fn(Object, *mut *mut c_void, c_int) -> Status;
    unlock = "LiteRtUnlockTensorBuffer": fn(Object) -> Status;
    run = "LiteRtRunCompiledModel": fn(Object, usize, usize, *const Object, usize, *const Object) -> Status;
}

// SAFETY: function addresses, and an environment that may be used from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// Whether there is a library, without opening it.
///
/// # Errors
/// [`Missing`] where there is none.
pub fn find() -> Result<(), Missing> {
    locate("libLiteRt.so", "VISAGED_LITERT_LIB", "ai_edge_litert", "libLiteRt.so").map(|_| ())
}

impl Api {
    fn get() -> Result<&'static Self, PeerError> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        let path = locate("libLiteRt.so", "VISAGED_LITERT_LIB", "ai_edge_litert", "libLiteRt.so")?;
        let api = API.get_or_init(|| Self::open(&path).map_err(|error| error.to_string()));
        api.as_ref().map_err(|message| PeerError::Load { path, message: message.clone() })
    }

    fn open(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        // SAFETY: its initialisers are those of a library that runs in any Python process. Never closed: its threads outlive every network.
        let library = Box::leak(Box::new(unsafe { libloading::Library::new(path) }?));
        let mut api = Self::symbols(library)?;
        let mut environment = null_mut();
        // SAFETY: no options, and a place for the object.
        check("start", unsafe { (api.create_environment)(0, null(), &mut environment) })?;
        api.environment = environment;
        Ok(api)
    }
}

fn check(step: &'static str, status: Status) -> Result<(), PeerError> {
    if status == 0 {
        return Ok(());
    }
    Err(PeerError::Failed { engine: ENGINE, step, message: format!("status {status}") })
}

/// A tensor at the edge and its memory in the library.
struct Edge {
    tensor: Tensor,
    /// Where the values are s8: what they stand for.
    step: Option<Step>,
    buffer: Object,
}

/// A .tflite file in LiteRT.
pub struct LiteRt {
    api: &'static Api,
    /// The library reads the model where it lies.
    _file: Box<[u8]>,
    model: Object,
    compiled: Object,
    inputs: Vec<Edge>,
    outputs: Vec<Edge>,
    input_tensors: Vec<Tensor>,
    output_tensors: Vec<Tensor>,
}

impl std::fmt::Debug for LiteRt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiteRt").field("inputs", &self.input_tensors).field("outputs", &self.output_tensors).finish()
    }
}

impl LiteRt {
    /// Reads the .tflite file `file` and makes it ready for `threads` threads, with XNNPACK wherever XNNPACK has the operator.
    /// Tensors at its edges are float or s8.
    ///
    /// # Errors
    /// [`PeerError`] where the library is missing or refuses the file.
    pub fn prepare(file: &[u8], threads: usize) -> Result<Self, PeerError> {
        let api = Api::get()?;
        let file: Box<[u8]> = file.into();
        let mut model = null_mut();
        // SAFETY: as the header declares it; the file is kept as long as the model.
        let status = unsafe { (api.create_model)(api.environment, file.as_ptr().cast(), file.len(), &mut model) };
        check("read the file", status)?;
        let mut peer = Self {
            api,
            _file: file,
            model,
            compiled: null_mut(),
            inputs: vec![],
            outputs: vec![],
            input_tensors: vec![],
            output_tensors: vec![],
        };
        peer.compile(threads)?;
        peer.bind()?;
        peer.input_tensors = peer.inputs.iter().map(|edge| edge.tensor.clone()).collect();
        peer.output_tensors = peer.outputs.iter().map(|edge| edge.tensor.clone()).collect();
        Ok(peer)
    }

    /// Whether one delegate took the whole graph; else parts of it run in LiteRT's own kernels.
    ///
    /// # Errors
    /// [`PeerError::Failed`] where the library does not say.
    pub fn is_fully_accelerated(&self) -> Result<bool, PeerError> {
        let mut all = false;
        // SAFETY: as the header declares it.
        check("ask for delegates", unsafe { (self.api.is_fully_accelerated)(self.compiled, &mut all) })?;
        Ok(all)
    }

    fn compile(&mut self, threads: usize) -> Result<(), PeerError> {
        let api = self.api;
        let (mut options, mut cpu) = (null_mut(), null_mut());
        let text = CString::new(format!("num_threads = {threads}\n")).unwrap_or_default().into_raw();
        // SAFETY: as the headers declare them; the text is freed once, by `free_text`; what is added to the options belongs to them.
        unsafe {
            check("create options", (api.create_options)(&mut options))?;
            let made = (|| {
                check("choose the CPU", (api.set_accelerators)(options, CPU))?;
                check("set threads", (api.create_opaque)(c"xnnpack".as_ptr(), text.cast(), free_text, &mut cpu))?;
                check("set threads", (api.add_opaque)(options, cpu))?;
                check("compile", (api.compile)(api.environment, self.model, options, &mut self.compiled))
            })();
            (api.destroy_options)(options);
            made
        }
    }

    fn bind(&mut self) -> Result<(), PeerError> {
        let api = self.api;
        let (mut signature, mut inputs, mut outputs) = (null_mut(), 0, 0);
        // SAFETY: as the headers declare them; signature and tensors belong to the model.
        unsafe {
            check("get the signature", (api.signature)(self.model, 0, &mut signature))?;
            check("count inputs", (api.input_count)(signature, &mut inputs))?;
            check("count outputs", (api.output_count)(signature, &mut outputs))?;
            for index in 0..inputs {
                let mut tensor = null_mut();
                check("get an input", (api.input)(signature, index, &mut tensor))?;
                self.inputs.push(edge(api, tensor)?);
            }
            for index in 0..outputs {
                let mut tensor = null_mut();
                check("get an output", (api.output)(signature, index, &mut tensor))?;
                self.outputs.push(edge(api, tensor)?);
            }
        }
        Ok(())
    }
}

unsafe extern "C" fn free_text(text: *mut c_void) {
    // SAFETY: the library hands back what `CString::into_raw` gave.
    drop(unsafe { CString::from_raw(text.cast()) });
}

/// # Safety
/// `tensor` is a tensor of a model of this library's.
unsafe fn edge(api: &Api, tensor: Object) -> Result<Edge, PeerError> {
    let (mut kind, mut name, mut step, mut buffer) = (Ranked::default(), null(), Step::default(), null_mut());
    // SAFETY: as the headers declare them; the name belongs to the tensor.
    let name = unsafe {
        check("get a shape", (api.tensor_type)(tensor, &mut kind))?;
        check("get a name", (api.tensor_name)(tensor, &mut name))?;
        CStr::from_ptr(name).to_string_lossy().into_owned()
    };
    let rank = (kind.layout.rank & 0x7f) as usize;
    let own: Vec<usize> = kind.layout.dimensions.iter().take(rank).map(|n| usize::try_from(*n).unwrap_or(0)).collect();
    let shape = if let [n, h, w, c] = own[..] { vec![n, c, h, w] } else { own };
    let tensor_of_ours = Tensor { name, shape };
    let bytes = match kind.element {
        FLOAT32 => 4,
        INT8 => 1,
        other => {
            let message = format!("{} holds elements of kind {other}", tensor_of_ours.name);
            return Err(PeerError::Failed { engine: ENGINE, step: "bind a tensor", message });
        }
    };
    // SAFETY: as the headers declare them.
    let step = unsafe {
        if kind.element == INT8 {
            check("get a scale", (api.tensor_step)(tensor, &mut step))?;
        }
        let size = tensor_of_ours.len() * bytes;
        check("create a buffer", (api.create_buffer)(api.environment, HOST_MEMORY, &kind, size, &mut buffer))?;
        (kind.element == INT8).then_some(step)
    };
    Ok(Edge { tensor: tensor_of_ours, step, buffer })
}

/// Calls `visit` with the place of each element in NCHW and in NHWC; one and the same where the tensor is no picture.
fn each_place(shape: &[usize], mut visit: impl FnMut(usize, usize)) {
    let [_, channels, rows, columns] = *shape else {
        (0..shape.iter().product()).for_each(|i| visit(i, i));
        return;
    };
    let pixels = rows * columns;
    for channel in 0..channels {
        for pixel in 0..pixels {
            visit(channel * pixels + pixel, pixel * channels + channel);
        }
    }
}

impl Peer for LiteRt {
    fn inputs(&self) -> &[Tensor] {
        &self.input_tensors
    }

    fn outputs(&self) -> &[Tensor] {
        &self.output_tensors
    }

    fn set_input(&mut self, index: usize, values: &[f32]) -> Result<(), PeerError> {
        let edge = &self.inputs[index];
        check_length(ENGINE, &edge.tensor, values.len())?;
        let mut data = null_mut();
        // SAFETY: locked, so ours until unlocked; as many elements of the kind that `edge` found as the tensor has.
        unsafe {
            check("lock an input", (self.api.lock)(edge.buffer, &mut data, WRITE))?;
            each_place(&edge.tensor.shape, |ours, theirs| match edge.step {
                None => *data.cast::<f32>().add(theirs) = values[ours],
                Some(step) => {
                    let q = (values[ours] / step.scale).round_ties_even() + step.zero_point as f32;
                    *data.cast::<i8>().add(theirs) = q as i8;
                }
            });
            check("unlock an input", (self.api.unlock)(edge.buffer))
        }
    }

    fn run(&mut self) -> Result<(), PeerError> {
        let inputs: Vec<_> = self.inputs.iter().map(|edge| edge.buffer).collect();
        let outputs: Vec<_> = self.outputs.iter().map(|edge| edge.buffer).collect();
        // SAFETY: one buffer for each input and output of signature 0.
        let status =
            unsafe { (self.api.run)(self.compiled, 0, inputs.len(), inputs.as_ptr(), outputs.len(), outputs.as_ptr()) };
        check("run", status)
    }

    fn output(&mut self, index: usize) -> Result<Vec<f32>, PeerError> {
        let edge = &self.outputs[index];
        let (mut data, mut values) = (null_mut(), vec![0.0; edge.tensor.len()]);
        // SAFETY: as in `set_input`.
        unsafe {
            check("lock an output", (self.api.lock)(edge.buffer, &mut data, READ))?;
            each_place(&edge.tensor.shape, |ours, theirs| {
                values[ours] = match edge.step {
                    None => *data.cast::<f32>().add(theirs),
                    Some(step) => (f32::from(*data.cast::<i8>().add(theirs)) - step.zero_point as f32) * step.scale,
                };
            });
            check("unlock an output", (self.api.unlock)(edge.buffer))?;
        }
        Ok(values)
    }
}

impl Drop for LiteRt {
    fn drop(&mut self) {
        // SAFETY: made by this library, destroyed once, nothing runs; the compiled model before the model that it reads.
        unsafe {
            for edge in self.inputs.iter().chain(&self.outputs) {
                (self.api.destroy_buffer)(edge.buffer);
            }
            if !self.compiled.is_null() {
                (self.api.destroy_compiled)(self.compiled);
            }
            (self.api.destroy_model)(self.model);
        }
    }
}
