use std::sync::Arc;

use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, PushKernelArg, result};

use crate::harness::{config, kernel, on_device};

const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
const N: usize = 256;

struct Adder {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    add: CudaFunction,
}

impl Adder {
    fn new() -> Adder {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let add = kernel(&context, "vector", "add_f32");
        Adder { context, stream, add }
    }

    fn vector(&self, value: f32) -> CudaSlice<f32> {
        self.stream.clone_htod(&[value; N]).unwrap()
    }

    /// c = a + b in `stream`.
    fn add(&self, stream: &Arc<CudaStream>, a: &CudaSlice<f32>, b: &CudaSlice<f32>, c: &mut CudaSlice<f32>) {
        let n = N as i32;
        let mut launch = stream.launch_builder(&self.add);
        launch.arg(a).arg(b).arg(c).arg(&n);
        unsafe { launch.launch(config(1, 256)) }.unwrap();
    }

    fn first(&self, of: &CudaSlice<f32>) -> f32 {
        self.stream.clone_dtoh(of).unwrap()[0]
    }
}

fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

#[test]
fn a_captured_step_runs_again_with_what_memory_holds_then() {
    on_device("graphs::a_captured_step_runs_again_with_what_memory_holds_then", &[], || {
        let device = Adder::new();
        let stream = &device.stream;
        let (mut a, b, mut c) = (device.vector(1.0), device.vector(2.0), device.vector(0.0));
        stream.synchronize().unwrap();
        stream.begin_capture(RELAXED).unwrap();
        device.add(stream, &a, &b, &mut c);
        stream.memcpy_dtod(&c, &mut a).unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(device.first(&a), 1.0, "capturing runs nothing");
        graph.upload().unwrap();
        for step in 1..=3 {
            graph.launch().unwrap();
            assert_eq!(device.first(&a), 1.0 + 2.0 * step as f32);
        }
    });
}

#[test]
fn branches_of_a_graph_overlap_on_the_modelled_clock() {
    on_device("graphs::branches_of_a_graph_overlap_on_the_modelled_clock", &[], || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let (stream, side) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let mut a = stream.alloc_zeros::<u8>(64 << 20).unwrap();
        let mut b = stream.alloc_zeros::<u8>(64 << 20).unwrap();
        stream.synchronize().unwrap();
        let mut times = Vec::new();
        for fork in [false, true] {
            stream.begin_capture(RELAXED).unwrap();
            if fork {
                side.join(&stream).unwrap();
            }
            stream.memset_zeros(&mut a).unwrap();
            (if fork { &side } else { &stream }).memset_zeros(&mut b).unwrap();
            if fork {
                stream.join(&side).unwrap();
            }
            let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
            let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let start = stream.record_event(timed).unwrap();
            graph.launch().unwrap();
            let end = stream.record_event(timed).unwrap();
            times.push(start.elapsed_ms(&end).unwrap());
        }
        assert!((times[0] / times[1] - 2.0).abs() < 0.01, "{times:?}");
    });
}

#[test]
fn a_graph_with_forks_has_the_edges_of_its_events() {
    on_device("graphs::a_graph_with_forks_has_the_edges_of_its_events", &[], || {
        let device = Adder::new();
        let side = device.context.new_stream().unwrap();
        let stream = &device.stream;
        let (a, b) = (device.vector(1.0), device.vector(2.0));
        let (mut c, mut d, mut e) = (device.vector(0.0), device.vector(0.0), device.vector(0.0));
        stream.synchronize().unwrap();
        stream.begin_capture(RELAXED).unwrap();
        device.add(stream, &a, &b, &mut c);
        side.join(stream).unwrap();
        device.add(&side, &c, &b, &mut d);
        device.add(stream, &c, &a, &mut e);
        stream.join(&side).unwrap();
        device.add(stream, &d, &e, &mut c);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        let (mut nodes, mut edges, mut roots) = (0, 0, 0);
        unsafe {
            ok(sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes));
            ok(sys::cuGraphGetRootNodes(graph.cu_graph(), std::ptr::null_mut(), &mut roots));
            let none = std::ptr::null_mut();
            let no_data = std::ptr::null_mut();
            ok(sys::cuGraphGetEdges_v2(graph.cu_graph(), none, std::ptr::null_mut(), no_data, &mut edges));
        }
        assert_eq!((nodes, roots, edges), (4, 1, 4));
        graph.launch().unwrap();
        assert_eq!(device.first(&c), 9.0);
    });
}

#[test]
fn an_instantiated_graph_takes_new_parameters() {
    on_device("graphs::an_instantiated_graph_takes_new_parameters", &[], || {
        let device = Adder::new();
        let stream = &device.stream;
        let (a, b, mut c) = (device.vector(1.0), device.vector(2.0), device.vector(0.0));
        let ten = device.vector(10.0);
        stream.synchronize().unwrap();
        let record = |left: &CudaSlice<f32>, c: &mut CudaSlice<f32>, twice: bool| {
            stream.begin_capture(RELAXED).unwrap();
            device.add(stream, left, &b, c);
            if twice {
                device.add(stream, left, &b, c);
            }
            unsafe { result::stream::end_capture(stream.cu_stream()) }.unwrap()
        };
        let graph = record(&a, &mut c, false);
        let flags = CUgraphInstantiate_flags(0);
        let exec = unsafe { result::graph::instantiate(graph, flags) }.unwrap();
        let launch = || unsafe { result::graph::launch(exec, stream.cu_stream()) }.unwrap();
        launch();
        assert_eq!(device.first(&c), 3.0);

        // The whole graph is replaced by one of the same shape.
        let other = record(&ten, &mut c, false);
        let mut info: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        ok(unsafe { sys::cuGraphExecUpdate_v2(exec, other, &mut info) });
        launch();
        assert_eq!(device.first(&c), 12.0);

        // One of another shape is refused, and changes nothing.
        let longer = record(&a, &mut c, true);
        let refused = unsafe { sys::cuGraphExecUpdate_v2(exec, longer, &mut info) };
        assert_eq!(refused, CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        let changed = sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        assert_eq!(info.result, changed);
        launch();
        assert_eq!(device.first(&c), 12.0);

        // One node gets another argument.
        unsafe {
            let (mut node, mut count) = (std::ptr::null_mut(), 1);
            ok(sys::cuGraphGetNodes(graph, &mut node, &mut count));
            let mut params: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
            ok(sys::cuGraphKernelNodeGetParams_v2(node, &mut params));
            assert_eq!((params.gridDimX, params.blockDimX), (1, 256));
            let fewer = 1i32;
            let arguments = std::slice::from_raw_parts_mut(params.kernelParams, 4);
            let mut own = [arguments[0], arguments[1], arguments[2], (&raw const fewer).cast_mut().cast()];
            params.kernelParams = own.as_mut_ptr();
            ok(sys::cuGraphExecKernelNodeSetParams_v2(exec, node, &params));
        }
        let mut zero = device.vector(0.0);
        std::mem::swap(&mut zero, &mut c);
        stream.memcpy_dtod(&c, &mut zero).unwrap();
        launch();
        let got = stream.clone_dtoh(&zero).unwrap();
        assert_eq!(got[..2], [3.0, 0.0], "one element of 1 + 2, the rest untouched");

        // A node that is switched off does nothing.
        unsafe {
            let (mut node, mut count) = (std::ptr::null_mut(), 1);
            ok(sys::cuGraphGetNodes(graph, &mut node, &mut count));
            ok(sys::cuGraphNodeSetEnabled(exec, node, 0));
            stream.memcpy_dtod(&c, &mut zero).unwrap();
            launch();
            assert_eq!(device.first(&zero), 0.0);
            ok(sys::cuGraphExecDestroy(exec));
            assert_eq!(sys::cuGraphLaunch(exec, stream.cu_stream()), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}

#[test]
fn a_graph_built_by_hand_runs_in_the_order_of_its_edges() {
    on_device("graphs::a_graph_built_by_hand_runs_in_the_order_of_its_edges", &[], || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        unsafe {
            let device = result::malloc_sync(16).unwrap();
            let mut graph = std::ptr::null_mut();
            ok(sys::cuGraphCreate(&mut graph, 0));
            let fill = |value: u32| {
                let mut params: sys::CUDA_MEMSET_NODE_PARAMS = std::mem::zeroed();
                params.dst = device;
                params.value = value;
                params.elementSize = 1;
                params.width = 16;
                params.height = 1;
                let mut node = std::ptr::null_mut();
                let context = context.cu_ctx();
                ok(sys::cuGraphAddMemsetNode(&mut node, graph, std::ptr::null(), 0, &params, context));
                node
            };
            // The edges say the opposite of the order of creation.
            let (second, first) = (fill(2), fill(1));
            ok(sys::cuGraphAddDependencies_v2(graph, &first, &second, std::ptr::null(), 1));
            let flags = CUgraphInstantiate_flags(0);
            let exec = result::graph::instantiate(graph, flags).unwrap();
            result::graph::launch(exec, std::ptr::null_mut()).unwrap();
            let mut back = [0u8; 16];
            result::memcpy_dtoh_sync(&mut back, device).unwrap();
            assert_eq!(back, [2; 16]);
            // A circle cannot be instantiated.
            ok(sys::cuGraphAddDependencies_v2(graph, &second, &first, std::ptr::null(), 1));
            let refused = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            assert_eq!(crate::harness::code(refused), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}

#[test]
fn memory_of_a_captured_allocation_goes_with_the_graph() {
    on_device("graphs::memory_of_a_captured_allocation_goes_with_the_graph", &[], || {
        let device = Adder::new();
        let stream = &device.stream;
        let (a, b) = (device.vector(1.0), device.vector(2.0));
        let mut out = device.vector(0.0);
        stream.synchronize().unwrap();
        let before = device.context.mem_get_info().unwrap().0;
        stream.begin_capture(RELAXED).unwrap();
        let mut scratch = unsafe { stream.alloc::<f32>(N) }.unwrap();
        device.add(stream, &a, &b, &mut scratch);
        device.add(stream, &scratch, &b, &mut out);
        drop(scratch);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert!(device.context.mem_get_info().unwrap().0 < before);
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(device.first(&out), 5.0);
        drop(graph);
        assert_eq!(device.context.mem_get_info().unwrap().0, before);
    });
}
