use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys::CUresult};

use crate::harness::{code, config, kernel, load, on_device, outcome};

#[test]
fn an_out_of_bounds_access_is_told_at_the_next_wait_and_spoils_the_context() {
    let name = "errors::an_out_of_bounds_access_is_told_at_the_next_wait_and_spoils_the_context";
    on_device(name, &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        unsafe { context.disable_event_tracking() };
        let add = kernel(&context, "vector", "add_f32");
        let a = stream.alloc_zeros::<f32>(100).unwrap();
        let mut c = stream.alloc_zeros::<f32>(100).unwrap();
        stream.synchronize().unwrap();
        let too_many = 1_000_000;
        let mut launch = stream.launch_builder(&add);
        launch.arg(&a).arg(&a).arg(&mut c).arg(&too_many);
        unsafe { launch.launch(config(1, 32)) }.expect("the launch itself is in order");
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        // Sticky: everything fails from here on.
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.alloc_zeros::<f32>(1)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(context.new_stream()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.clone_dtoh(&a)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn a_context_made_after_the_spoilt_one_is_destroyed_works() {
    on_device("errors::a_context_made_after_the_spoilt_one_is_destroyed_works", &[], || {
        use cudarc::driver::result;
        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        unsafe {
            let context = result::primary_ctx::retain(device).unwrap();
            result::ctx::set_current(context).unwrap();
            let text = std::ffi::CString::new(crate::common::ptx("vector.nvcc13.O3")).unwrap();
            let run = |grid: u32| {
                let module = result::module::load_data(text.as_ptr().cast())?;
                let function = result::module::get_function(module, c"fill_parts".to_owned())?;
                let mut buffer = result::malloc_sync(64)?;
                let mut part = 16i32;
                let mut params = [(&raw mut buffer).cast(), (&raw mut part).cast()];
                result::launch_kernel(
                    function,
                    (grid, 1, 1),
                    (32, 1, 1),
                    0,
                    std::ptr::null_mut(),
                    &mut params,
                )?;
                result::ctx::synchronize()
            };
            assert_eq!(run(9).unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            assert_eq!(run(1).unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            result::primary_ctx::release(device).unwrap();
            let context = result::primary_ctx::retain(device).unwrap();
            result::ctx::set_current(context).unwrap();
            run(1).unwrap();
        }
    });
}

#[test]
fn a_misaligned_access_is_716() {
    on_device("errors::a_misaligned_access_is_716", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = load(&context, &crate::common::ptx("vector.BUG_MISALIGNED")).unwrap();
        let axpy = module.load_function("axpy_f16").unwrap();
        let (a, n) = (0x3c00u16, 64);
        let x = stream.alloc_zeros::<u16>(64).unwrap();
        let mut y = stream.alloc_zeros::<u16>(64).unwrap();
        let mut launch = stream.launch_builder(&axpy);
        launch.arg(&a).arg(&x).arg(&mut y).arg(&n);
        unsafe { launch.launch(config(1, 32)) }.unwrap();
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
    });
}

#[test]
fn launches_that_the_device_cannot_hold_are_refused() {
    on_device("errors::launches_that_the_device_cannot_hold_are_refused", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let fill = kernel(&context, "vector", "fill_parts");
        let mut out = stream.alloc_zeros::<u32>(64).unwrap();
        let part = 1;
        let mut launch = |grid, block, shared| {
            let mut launch = stream.launch_builder(&fill);
            launch.arg(&mut out).arg(&part);
            let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: shared };
            unsafe { launch.launch(config) }.map(|_| ())
        };
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(code(launch((0, 1, 1), (32, 1, 1), 0)), invalid);
        assert_eq!(code(launch((1, 1, 1), (0, 1, 1), 0)), invalid);
        assert_eq!(code(launch((1, 1, 1), (1025, 1, 1), 0)), invalid);
        assert_eq!(code(launch((1, 1, 1), (32, 33, 1), 0)), invalid);
        assert_eq!(code(launch((1, 1, 1), (1, 1, 65), 0)), invalid);
        assert_eq!(code(launch((1, 65536, 1), (1, 1, 1), 0)), invalid);
        assert_eq!(code(launch((u32::MAX, 1, 1), (1, 1, 1), 0)), invalid);
        assert_eq!(
            code(launch((u32::MAX, u32::MAX, u32::MAX), (u32::MAX, u32::MAX, u32::MAX), u32::MAX)),
            invalid
        );
        // 48 KiB without opting in, 163 KiB with.
        assert_eq!(code(launch((1, 1, 1), (32, 1, 1), (48 << 10) + 1)), invalid);
        launch((1, 1, 1), (32, 1, 1), 48 << 10).unwrap();
        let attribute =
            cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(code(fill.set_attribute(attribute, (163 << 10) + 1)), invalid);
        fill.set_attribute(attribute, 163 << 10).unwrap();
        launch((1, 1, 1), (32, 1, 1), 163 << 10).unwrap();
        assert_eq!(code(launch((1, 1, 1), (32, 1, 1), (163 << 10) + 1)), invalid);
        // None of this spoils the context.
        context.synchronize().unwrap();
    });
}

#[test]
fn launch_bounds_are_enforced() {
    on_device("errors::launch_bounds_are_enforced", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let pipeline = kernel(&context, "pipeline", "pipeline2");
        assert_eq!(pipeline.max_threads_per_block().unwrap(), 128);
        let data = stream.alloc_zeros::<f32>(512).unwrap();
        let mut out = stream.alloc_zeros::<f32>(512).unwrap();
        let tiles = 1;
        let mut launch = |threads| {
            let mut launch = stream.launch_builder(&pipeline);
            launch.arg(&data).arg(&mut out).arg(&tiles);
            unsafe { launch.launch(config(1, threads)) }.map(|_| ())
        };
        launch(128).unwrap();
        assert_eq!(code(launch(129)), CUresult::CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn a_cooperative_launch_must_fit_the_device() {
    on_device("errors::a_cooperative_launch_must_fit_the_device", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let barrier = kernel(&context, "between_ctas", "grid_barrier");
        let n = 64;
        let mut data = stream.alloc_zeros::<i32>(n).unwrap();
        let mut out = stream.alloc_zeros::<i32>(2 * n).unwrap();
        let mut arrived = stream.alloc_zeros::<u32>(1).unwrap();
        let rounds = 2;
        let mut launch = |grid| {
            let mut launch = stream.launch_builder(&barrier);
            launch.arg(&mut data).arg(&mut out).arg(&mut arrived).arg(&rounds);
            unsafe { launch.launch_cooperative(config(grid, 1024)) }.map(|_| ())
        };
        assert_eq!(code(launch(108 * 2 + 1)), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
        launch(n as u32).unwrap();
        let got = stream.clone_dtoh(&out).unwrap();
        for round in 0..2 {
            for block in 0..n {
                assert_eq!(got[round * n + block], (block as i32 + 1) % n as i32 + 100 * round as i32);
            }
        }
    });
}

#[test]
fn a_deadlock_ends_as_a_timeout() {
    on_device("errors::a_deadlock_ends_as_a_timeout", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = load(&context, &crate::common::ptx("between_ctas.BUG_DEADLOCK")).unwrap();
        let hand_over = module.load_function("hand_over").unwrap();
        let mut turn = stream.alloc_zeros::<u32>(1).unwrap();
        let mut log = stream.alloc_zeros::<u32>(8).unwrap();
        let mut launch = stream.launch_builder(&hand_over);
        launch.arg(&mut turn).arg(&mut log);
        unsafe { launch.launch(config(8, 32)) }.unwrap();
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    });
}

#[test]
fn memory_runs_out_where_the_card_ends() {
    on_device("errors::memory_runs_out_where_the_card_ends", &[("CUDASIM_MEMORY", "1M")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let half = unsafe { stream.alloc::<u8>(512 << 10) }.unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (512 << 10, 1 << 20));
        let more = unsafe { stream.alloc::<u8>((512 << 10) + 1) };
        assert_eq!(code(more), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let much_more = unsafe { stream.alloc::<u8>(100 << 30) };
        assert_eq!(code(much_more), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(half);
        unsafe { stream.alloc::<u8>(1 << 20) }.unwrap();
    });
}

#[test]
fn reports_can_be_made_fatal_and_end_the_process_with_a_code() {
    let name = "errors::reports_can_be_made_fatal_and_end_the_process_with_a_code";
    let settings = [("CUDASIM_FATAL_REPORTS", "1"), ("CUDASIM_EXIT_CODE", "77")];
    let ended = outcome(name, &settings, || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = load(&context, &crate::common::ptx("vector.BUG_TWO_WRITERS")).unwrap();
        let fill = module.load_function("fill_parts").unwrap();
        let mut out = stream.alloc_zeros::<u32>(64).unwrap();
        let part = 8;
        let mut launch = stream.launch_builder(&fill);
        launch.arg(&mut out).arg(&part);
        unsafe { launch.launch(config(8, 32)) }.unwrap();
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
    if let Some(output) = ended {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{text}");
        assert!(text.contains("two CTAs write the same bytes") && text.contains("fill_parts"), "{text}");
    }
}
