//! Faults on request.

use cudarc::driver::{CudaContext, PushKernelArg, sys::CUresult};

use crate::harness::{code, config, kernel, on_device, outcome};

#[test]
fn the_third_allocation_fails() {
    on_device("faults::the_third_allocation_fails", &[("CUDASIM_FAIL", "alloc:3")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let alloc = || unsafe { stream.alloc::<u8>(16) };
        let _kept = (alloc().unwrap(), alloc().unwrap());
        assert_eq!(code(alloc()), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        alloc().unwrap();
    });
}

#[test]
fn the_second_copy_and_every_launch_from_the_third_fail() {
    let name = "faults::the_second_copy_and_every_launch_from_the_third_fail";
    on_device(name, &[("CUDASIM_FAIL", "copy:2,launch:3+=719")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let fill = kernel(&context, "vector", "fill_parts");
        let mut out = stream.clone_htod(&[0u32; 32]).unwrap();
        assert_eq!(code(stream.clone_dtoh(&out)), CUresult::CUDA_ERROR_UNKNOWN);
        let part = 8;
        let mut launch = || {
            let mut launch = stream.launch_builder(&fill);
            launch.arg(&mut out).arg(&part);
            unsafe { launch.launch(config(4, 32)) }.map(|_| ())
        };
        launch().unwrap();
        launch().unwrap();
        for _ in 0..3 {
            assert_eq!(code(launch()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        }
        assert_eq!(stream.clone_dtoh(&out).unwrap()[31], 3);
    });
}

#[test]
fn a_sticky_error_comes_with_the_wait_and_stays() {
    on_device(
        "faults::a_sticky_error_comes_with_the_wait_and_stays",
        &[("CUDASIM_FAIL", "sticky:2")],
        || {
            let context = CudaContext::new(0).unwrap();
            let stream = context.default_stream();
            let fill = kernel(&context, "vector", "fill_parts");
            let mut out = stream.alloc_zeros::<u32>(32).unwrap();
            let part = 8;
            for _ in 0..2 {
                let mut launch = stream.launch_builder(&fill);
                launch.arg(&mut out).arg(&part);
                unsafe { launch.launch(config(4, 32)) }.unwrap();
            }
            for _ in 0..2 {
                assert_eq!(code(context.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            }
        },
    );
}

#[test]
fn a_device_that_disappears_answers_nothing_any_more() {
    let name = "faults::a_device_that_disappears_answers_nothing_any_more";
    on_device(name, &[("CUDASIM_FAIL", "device-lost:4"), ("CUDASIM_DEVICES", "2")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut failed = 0;
        for _ in 0..6 {
            failed += u32::from(stream.clone_htod(&[1u8, 2, 3]).is_err());
        }
        // Each takes an allocation and a copy.
        assert_eq!(failed, 5);
        assert_eq!(code(context.synchronize()), CUresult::CUDA_ERROR_UNKNOWN);
        let other = CudaContext::new(1).unwrap();
        other.default_stream().clone_htod(&[1u8]).unwrap();
    });
}

#[test]
fn a_rule_that_is_none_fails_the_initialisation() {
    let name = "faults::a_rule_that_is_none_fails_the_initialisation";
    let ended = outcome(name, &[("CUDASIM_FAIL", "coffee:1")], || {
        assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_SYSTEM_NOT_READY);
    });
    if let Some(output) = ended {
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("device-lost"), "the kinds are listed");
    }
}
