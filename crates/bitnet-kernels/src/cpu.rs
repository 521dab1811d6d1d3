//! Which CPU this is, for reports of speed.
//!
//! Invariant: names are those of the CPU and the system; nothing is decided by them.

/// The model of the CPU as it names itself, if it does.
pub fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let named = |key: &str| {
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        });
        value.filter(|value| !value.is_empty())
    };
    named("model name")
        .or_else(|| named("Model"))
        .or_else(|| named("CPU part").map(|part| format!("CPU part {part}")))
}

/// The instruction sets that the kernels of this build know and this machine offers, by the names that people use.
pub fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        for (is_there, name) in [
            (is_x86_feature_detected!("ssse3"), "SSSE3"),
            (is_x86_feature_detected!("sse4.2"), "SSE4.2"),
            (is_x86_feature_detected!("f16c"), "F16C"),
            (is_x86_feature_detected!("fma"), "FMA"),
            (is_x86_feature_detected!("avx2"), "AVX2"),
            (is_x86_feature_detected!("avxvnni"), "AVX-VNNI"),
            (is_x86_feature_detected!("avx512f"), "AVX-512 F"),
            (is_x86_feature_detected!("avx512bw"), "AVX-512 BW"),
            (is_x86_feature_detected!("avx512vbmi"), "AVX-512 VBMI"),
            (is_x86_feature_detected!("avx512vnni"), "AVX-512 VNNI"),
            (is_x86_feature_detected!("gfni"), "GFNI"),
        ] {
            if is_there {
                features.push(name);
            }
        }
        if crate::Backend::by_name("amx_int8").is_ok() {
            features.push("AMX-INT8");
        }
    }
    #[cfg(target_arch = "aarch64")]
    for (is_there, name) in [
        (std::arch::is_aarch64_feature_detected!("neon"), "NEON"),
        (
            std::arch::is_aarch64_feature_detected!("dotprod"),
            "DotProd",
        ),
        (std::arch::is_aarch64_feature_detected!("i8mm"), "I8MM"),
        (std::arch::is_aarch64_feature_detected!("sve"), "SVE"),
    ] {
        if is_there {
            features.push(name);
        }
    }
    features
}
