//! The report as text.

use std::fmt::Write;

use super::{KernelSummary, LaunchReport, LineReport, Report};
use crate::counters::MemoryCount;

impl Report {
    /// Totals per kernel, then every launch; with `lines` also where the work comes from in the source.
    pub fn table(&self, lines: bool) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{}: {} launches, {} modelled",
            self.device,
            self.launches.len(),
            time(self.time_us())
        );
        let _ = writeln!(
            out,
            "{:<32} {:>8} {:>10} {:>6} {:>7} {:>10} {:>10} {:>10} limiter",
            "kernel", "launches", "time", "share", "bound", "DRAM", "mma", "conflicts"
        );
        for k in self.kernels() {
            write_summary(&mut out, &k, self.time_us());
        }
        for (i, launch) in self.launches.iter().enumerate() {
            let _ = writeln!(out);
            let _ = write!(out, "#{i} {}", launch.table());
            if lines {
                out.push_str(&launch.line_table());
            }
        }
        out
    }
}

fn write_summary(out: &mut String, k: &KernelSummary, total_us: f64) {
    let _ = writeln!(
        out,
        "{:<32} {:>8} {:>10} {:>5.1}% {:>6.1}% {:>10} {:>10} {:>10} {}",
        short(&k.kernel, 32),
        k.launches,
        time(k.time_us),
        percent(k.time_us, total_us),
        percent(k.bound_us, k.time_us),
        bytes(k.dram_bytes),
        count(k.mma_macs),
        count(k.bank_conflicts),
        k.limiter.name(),
    );
}

impl LaunchReport {
    /// The launch in a dozen lines.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let p = &self.prediction;
        let [gx, gy, gz] = self.grid;
        let [bx, by, bz] = self.block;
        let sampled = self.sampled_ctas.map_or(String::new(), |n| format!(", {n} CTAs sampled"));
        let _ = writeln!(out, "{}  grid {gx}x{gy}x{gz}  block {bx}x{by}x{bz}{sampled}", self.kernel);
        let limiters: Vec<&str> = p.occupancy.limiters.iter().map(|l| l.name()).collect();
        let _ = writeln!(
            out,
            "  occupancy     {} CTAs, {} of {} warps per SM ({:.0}%), limited by {}; {:.2} waves, busiest SM {:.2}x the mean",
            p.occupancy.ctas_per_sm,
            p.occupancy.warps_per_sm,
            p.occupancy.max_warps_per_sm,
            100.0 * p.occupancy.fraction(),
            limiters.join(", "),
            p.waves,
            p.tail,
        );
        let estimated = if self.facts.registers_estimated { " (estimated)" } else { "" };
        let spills =
            self.facts.local_bytes.map_or("local memory unknown".into(), |b| format!("{b} B local memory"));
        let _ = writeln!(
            out,
            "  resources     {} registers{estimated}, {spills}, shared memory {} + {} B",
            self.facts.registers, self.static_shared_bytes, self.dynamic_shared_bytes
        );
        let _ = writeln!(
            out,
            "  instructions  {} warp, {} thread, {:.1}% of the lanes active, {} machine ({})",
            count(self.warp_instructions),
            count(self.thread_instructions),
            100.0 * self.active_lanes(),
            count(p.machine_instructions as u64),
            if self.facts.sass_per_ptx.is_some() { "by the cubin's ratio" } else { "estimated" },
        );
        let mix: Vec<String> = self
            .mix
            .iter()
            .take(8)
            .map(|(class, n)| {
                format!("{} {:.1}%", class.name(), percent(*n as f64, self.warp_instructions as f64))
            })
            .collect();
        let _ = writeln!(out, "  mix           {}", mix.join("  "));
        if self.mma_count > 0 {
            let _ = writeln!(
                out,
                "  tensor cores  {} mma, {:.1} TFLOP/s modelled",
                count(self.mma_count),
                self.mma_tflops()
            );
        }
        write_global(&mut out, "global", &self.global);
        let _ = writeln!(
            out,
            "  device memory read {} unique of {} asked, written {} of {}; DRAM {} in, {} out, L2 kept {}; {:.0} GB/s",
            bytes(self.unique_read_bytes),
            bytes(self.read_bytes_asked),
            bytes(self.unique_written_bytes),
            bytes(self.written_bytes_asked),
            bytes(p.dram_read_bytes),
            bytes(p.dram_written_bytes),
            bytes(p.l2_hit_bytes),
            self.dram_gb_per_s(),
        );
        if self.host_bytes > 0 {
            let _ = writeln!(out, "  host bus      {}", bytes(self.host_bytes));
        }
        if self.shared.requests > 0 {
            let _ = writeln!(
                out,
                "  shared        {} requests, {} wavefronts, {} of them bank conflicts",
                count(self.shared.requests),
                count(self.shared.wavefronts),
                count(self.shared.bank_conflicts())
            );
        }
        if self.local.requests > 0 {
            write_global(&mut out, "local", &self.local);
        }
        let t = &p.terms;
        let _ = writeln!(
            out,
            "  terms         dram {}  l2 {}  smem {}  lsu {}  mma {}  pipe {}  issue {}  chain {}",
            time(t.dram_us),
            time(t.l2_us),
            time(t.smem_us),
            time(t.lsu_us),
            time(t.mma_us),
            time(t.pipe_us),
            time(t.issue_us),
            time(t.chain_us),
        );
        let _ = writeln!(
            out,
            "  modelled      {} = {} gap + {} ramp + work; limited by {}; bound {}, {:.1}% of it reached",
            time(p.time_us),
            time(p.launch_gap_us),
            time(p.ramp_us),
            p.limiter.name(),
            time(p.bound_us),
            100.0 * p.fraction_of_bound()
        );
        out
    }

    /// The source lines, most instructions first.
    pub fn line_table(&self) -> String {
        let mut out = String::new();
        let mut lines: Vec<&LineReport> = self.lines.iter().collect();
        lines.sort_by_key(|l| std::cmp::Reverse(l.warp_execs));
        let _ = writeln!(
            out,
            "  {:<36} {:>10} {:>6} {:>6} {:>9} {:>9} {:>9}  opcodes",
            "line", "warp inst", "share", "lanes", "sect/req", "ideal", "conflicts"
        );
        for l in lines {
            let mut opcodes: Vec<(&str, u64)> =
                l.opcodes.iter().map(|(text, n)| (text.as_str(), *n)).collect();
            opcodes.sort_by_key(|o| std::cmp::Reverse(o.1));
            let opcodes: Vec<&str> = opcodes.iter().take(3).map(|o| o.0).collect();
            let lanes = percent(l.thread_execs as f64, 32.0 * l.warp_execs as f64);
            let _ = writeln!(
                out,
                "  {:<36} {:>10} {:>5.1}% {:>5.1}% {:>9} {:>9} {:>9}  {}",
                place(l),
                count(l.warp_execs),
                percent(l.warp_execs as f64, self.warp_instructions as f64),
                lanes,
                per_request(&l.global, l.global.sectors),
                per_request(&l.global, l.global.ideal_sectors),
                if l.shared.requests > 0 { count(l.shared.bank_conflicts()) } else { String::new() },
                opcodes.join(" "),
            );
        }
        out
    }
}

fn write_global(out: &mut String, what: &str, m: &MemoryCount) {
    if m.requests == 0 {
        return;
    }
    let collisions =
        if m.collisions > 0 { format!(", {} colliding atomics", count(m.collisions)) } else { String::new() };
    let _ = writeln!(
        out,
        "  {what:<13} {} requests, {:.2} sectors each (ideal {:.2}), {} sectors{collisions}",
        count(m.requests),
        m.sectors_per_request(),
        m.ideal_sectors as f64 / m.requests as f64,
        count(m.sectors),
    );
}

fn per_request(m: &MemoryCount, sectors: u64) -> String {
    if m.requests == 0 { String::new() } else { format!("{:.2}", sectors as f64 / m.requests as f64) }
}

fn place(l: &LineReport) -> String {
    let file = l.file.rsplit('/').next().unwrap_or_default();
    if file.is_empty() { format!("PTX line {}", l.line) } else { short(&format!("{file}:{}", l.line), 36) }
}

/// The end of a long name, which tells more than its beginning.
fn short(name: &str, width: usize) -> String {
    let n = name.chars().count();
    if n <= width {
        name.into()
    } else {
        format!("…{}", name.chars().skip(n - width + 1).collect::<String>())
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.3} s", us / 1e6),
        us if us >= 1e3 => format!("{:.3} ms", us / 1e3),
        us => format!("{us:.2} us"),
    }
}

fn count(n: u64) -> String {
    scaled(n, &["", " k", " M", " G", " T", " P", " E"])
}

fn bytes(n: u64) -> String {
    scaled(n, &[" B", " kB", " MB", " GB", " TB", " PB", " EB"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    if n < 1000 {
        return format!("{n}{}", units[0]);
    }
    let (mut value, mut unit) = (n as f64, 0);
    // 999.95 would print as 1000.0.
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1.0 k");
        assert_eq!(count(999_960), "1.0 M");
        assert_eq!(count(u64::MAX), "18.4 E");
        assert_eq!(bytes(33_554_432), "33.6 MB");
        assert_eq!(time(0.5), "0.50 us");
        assert_eq!(time(9_900.0), "9.900 ms");
        assert_eq!(short("flash_attention_forward", 10), "…n_forward");
    }
}
