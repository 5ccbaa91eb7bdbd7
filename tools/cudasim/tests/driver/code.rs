use cudarc::driver::{CudaContext, result, sys, sys::CUresult};
use cudarc::nvrtc::Ptx;

use crate::common::{file, ptx};
use crate::harness::{code, kernel, load, on_device, outcome};

#[test]
fn containers_with_ptx_load_and_a_cubin_alone_does_not() {
    on_device("code::containers_with_ptx_load_and_a_cubin_alone_does_not", &[], || {
        let context = CudaContext::new(0).unwrap();
        let from = |name: &str| context.load_module(Ptx::from_binary(file(name)));
        for name in ["vector.none.fatbin", "vector.speed.fatbin", "vector.size.fatbin"] {
            let function = from(name).unwrap().load_function("add_f32").unwrap();
            // 48 would be the estimate of nobody: the registers are those of the cubin in the container.
            assert!((8..48).contains(&function.num_regs().unwrap()), "{name}");
        }
        assert_eq!(code(from("vector.cubin")), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("vector.fatbin");
        std::fs::write(&path, file("vector.size.fatbin")).unwrap();
        context.load_module(Ptx::from_file(&path)).unwrap();
        assert_eq!(
            code(context.load_module(Ptx::from_file("/nowhere.ptx"))),
            CUresult::CUDA_ERROR_FILE_NOT_FOUND
        );
    });
}

#[test]
fn bad_images_get_the_codes_of_the_driver() {
    let ended = outcome("code::bad_images_get_the_codes_of_the_driver", &[], || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(code(load(&context, "int main() {}")), CUresult::CUDA_ERROR_INVALID_PTX);
        assert_eq!(code(load(&context, "")), CUresult::CUDA_ERROR_INVALID_PTX);
        let good = ptx("vector.nvcc13.O3");
        let unknown = good.replacen("ld.global", "ld.marvellous", 1);
        assert_eq!(code(load(&context, &unknown)), CUresult::CUDA_ERROR_INVALID_PTX);
        let cut = &good[..good.len() / 2];
        assert_eq!(code(load(&context, cut)), CUresult::CUDA_ERROR_INVALID_PTX);
        let hopper = good.replacen(".target sm_80", ".target sm_90", 1);
        assert_eq!(code(load(&context, &hopper)), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let mut truncated = file("vector.size.fatbin");
        // A pointer has no length: what lies behind the part that is there is whatever memory holds.
        truncated[600..].fill(0);
        let error = code(context.load_module(Ptx::from_binary(truncated)));
        assert_eq!(error, CUresult::CUDA_ERROR_INVALID_IMAGE);
        let module = load(&context, &good).unwrap();
        assert_eq!(code(module.load_function("subtract")), CUresult::CUDA_ERROR_NOT_FOUND);
    });
    if let Some(output) = ended {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("ld.marvellous"), "an unknown instruction is named: {text}");
    }
}

#[test]
fn ptx_newer_than_the_driver_is_refused_as_such() {
    let settings = [("CUDASIM_DRIVER", "12.4")];
    on_device("code::ptx_newer_than_the_driver_is_refused_as_such", &settings, || {
        let context = CudaContext::new(0).unwrap();
        let error = code(load(&context, &ptx("vector.nvcc13.O3")));
        assert_eq!(error, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        load(&context, &ptx("vector.nvcc13.O3").replacen(".version 9.0", ".version 8.4", 1)).unwrap();
        assert_eq!(result::init(), Ok(()));
        let mut version = 0;
        assert_eq!(unsafe { sys::cuDriverGetVersion(&mut version) }, CUresult::CUDA_SUCCESS);
        assert_eq!(version, 12040);
    });
}

#[test]
fn variables_of_a_module_have_addresses_and_values() {
    on_device("code::variables_of_a_module_have_addresses_and_values", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = load(&context, &ptx("local.nvcc13.O3")).unwrap();
        let offset = module.get_global("offset", &stream).unwrap();
        assert_eq!(offset.len(), 4);
        assert_eq!(stream.clone_dtoh(&offset).unwrap(), 7i32.to_le_bytes());
        assert!(module.get_global("missing", &stream).is_err());
    });
}

#[test]
fn attributes_and_occupancy_follow_the_kernel() {
    on_device("code::attributes_and_occupancy_follow_the_kernel", &[], || {
        let context = CudaContext::new(0).unwrap();
        let reduction = kernel(&context, "reduction", "sum_tiles");
        assert_eq!(reduction.shared_size_bytes().unwrap(), 512);
        assert_eq!(reduction.max_threads_per_block().unwrap(), 1024);
        assert_eq!(reduction.ptx_version().unwrap(), 80);
        assert_eq!(reduction.binary_version().unwrap(), 80);
        // 2048 threads per SM.
        assert_eq!(reduction.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap(), 8);
        // 164 KiB per SM; each CTA has 512 bytes and the driver's 1 KiB beside its own.
        assert_eq!(reduction.occupancy_max_active_blocks_per_multiprocessor(32, 40 << 10, None).unwrap(), 3);
        let free = reduction.occupancy_available_dynamic_smem_per_block(2, 128).unwrap();
        assert!((47 << 10..=48 << 10).contains(&free), "{free}");
        extern "C" fn none(_block: i32) -> usize {
            0
        }
        let (grid, block) = reduction.occupancy_max_potential_block_size(none, 0, 0, None).unwrap();
        assert_eq!(grid * block, 108 * 2048);
    });
}

#[test]
fn names_are_found_and_those_that_are_not_supported_say_801() {
    on_device("code::names_are_found_and_those_that_are_not_supported_say_801", &[], || unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        for name in [
            c"cuTexObjectCreate",
            c"cuMemAllocManaged",
            c"cuGraphConditionalHandleCreate",
            c"cuIpcGetMemHandle",
        ] {
            let found = libc::dlsym(library, name.as_ptr());
            assert!(!found.is_null(), "{name:?}");
            let function: extern "C" fn(usize, usize, usize) -> u32 = std::mem::transmute(found);
            assert_eq!(function(0, 0, 0), 801, "{name:?}");
        }
        let (mut address, mut status) = (
            std::ptr::null_mut(),
            sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT,
        );
        let find = |name: &std::ffi::CStr, address: &mut *mut std::ffi::c_void, status: *mut _| {
            sys::cuGetProcAddress_v2(name.as_ptr(), address, 13000, 0, status)
        };
        assert_eq!(find(c"cuMemAlloc", &mut address, &mut status), CUresult::CUDA_SUCCESS);
        assert_eq!(address, libc::dlsym(library, c"cuMemAlloc_v2".as_ptr()));
        assert_eq!(find(c"cuMakeCoffee", &mut address, &mut status), CUresult::CUDA_ERROR_NOT_FOUND);
        assert!(address.is_null());
        assert_eq!(status, sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    });
}

#[test]
fn a_kernel_has_no_more_registers_than_its_largest_block_leaves_to_a_thread() {
    on_device("code::a_kernel_has_no_more_registers_than_its_largest_block_leaves_to_a_thread", &[], || {
        let context = CudaContext::new(0).unwrap();
        // A hundred values that are all needed at the end.
        let loads: String =
            (0..100).map(|i| format!("ld.volatile.global.u32 %r{i}, [%rd0+{}];", 4 * i)).collect();
        let sums: String = (1..100).map(|i| format!("add.u32 %r0, %r0, %r{i};")).collect();
        let registers = |bound: &str| {
            let text = format!(
                ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {bound} {{\n\
                 .reg .u32 %r<100>; .reg .u64 %rd<1>;\nld.param.u64 %rd0, [p];\n{loads}{sums}\
                 st.global.u32 [%rd0], %r0;\nret;\n}}\n"
            );
            load(&context, &text).unwrap().load_function("k").unwrap().num_regs().unwrap()
        };
        assert!(registers("") >= 100);
        assert_eq!(registers(".maxntid 1024, 1, 1"), 64);
        assert!(registers(".maxntid 256, 1, 1") >= 100);
    });
}
