//! Settings, from the environment and from a file.
//!
//! `CUDASIM_CONFIG` names a file of `name = value` lines (`#` starts a comment) with the names of the environment
//! variables in lower case without their prefix: `device = h100`. The environment wins over the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::fault::{self, Rule};
use crate::check::Checks;
use crate::device::DeviceSpec;
use crate::exec::{ExecOptions, Sampling};

/// Everything that a run of the stand-in driver can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `CUDASIM_DEVICE`: which card, by name or by description, see [`Config::device_spec`].
    pub device: String,
    /// `CUDASIM_DEVICES`: how many of them.
    pub devices: u32,
    /// `CUDASIM_MEMORY`: memory of each in bytes instead of the card's (`K`, `M`, `G` allowed).
    pub memory_bytes: Option<u64>,
    /// `CUDASIM_CHECKS`: `all` (default), `none` (bounds and alignment only), or a list such as `uninit,races`.
    pub checks: Vec<String>,
    /// `CUDASIM_COUNTERS`: `0` runs without counters and without modelled times.
    pub counters: bool,
    /// `CUDASIM_THREADS`: host threads that execute CTAs; all cores by default.
    pub threads: Option<usize>,
    /// `CUDASIM_SAMPLE`: execute only some CTAs of a launch and scale the counters.
    pub sample: Option<Sampling>,
    /// `CUDASIM_ORDER`: `late` defers work until something waits for it, as a slow card would.
    pub late: bool,
    /// `CUDASIM_DRIVER`: version that `cuDriverGetVersion` tells, such as `12.4`; newer PTX is refused.
    pub driver: (u32, u32),
    /// `CUDASIM_REPORT`: file for launches and reports, JSON, written at exit.
    pub report: Option<PathBuf>,
    /// `CUDASIM_QUIET`: `1` keeps reports off stderr.
    pub quiet: bool,
    /// `CUDASIM_MAX_REPORTS`: how many reports a launch may make before the rest is only counted.
    pub max_reports: usize,
    /// `CUDASIM_FATAL_REPORTS`: `1` makes any report of a launch a sticky launch failure (719).
    pub fatal_reports: bool,
    /// `CUDASIM_EXIT_CODE`: the process ends with this code if anything was reported.
    pub exit_code: Option<i32>,
    /// `CUDASIM_FAIL`: faults to inject, as the module `fault` reads them.
    pub faults: Vec<Rule>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            device: "a100-80g".to_owned(),
            devices: 1,
            memory_bytes: None,
            checks: vec!["all".to_owned()],
            counters: true,
            threads: None,
            sample: None,
            late: false,
            driver: (13, 0),
            report: None,
            quiet: false,
            max_reports: 16,
            fatal_reports: false,
            exit_code: None,
            faults: Vec::new(),
        }
    }
}

const PREFIX: &str = "CUDASIM_";

impl Config {
    /// The settings of this process.
    ///
    /// # Errors
    /// A sentence that names the setting that cannot be used.
    pub fn from_process() -> Result<Config, String> {
        let own = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(PREFIX)?.to_ascii_lowercase();
            Some((name, value.to_string_lossy().into_owned()))
        });
        let environment: BTreeMap<String, String> = own.collect();
        let mut settings = match environment.get("config") {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("CUDASIM_CONFIG: {path}: {error}"))?;
                parse_file(&text).map_err(|error| format!("{path}: {error}"))?
            }
            None => BTreeMap::new(),
        };
        settings.extend(environment);
        Config::from_settings(&settings)
    }

    /// Settings from names and values, the names as in the file.
    ///
    /// # Errors
    /// A sentence that names the setting that cannot be used.
    pub fn from_settings(settings: &BTreeMap<String, String>) -> Result<Config, String> {
        let mut config = Config::default();
        for (name, value) in settings {
            config.set(name, value.trim()).map_err(|expected| {
                format!("{PREFIX}{}: {value:?} is not {expected}", name.to_ascii_uppercase())
            })?;
        }
        Ok(config)
    }

    /// The card: a preset by name, a JSON object such as `{"base": "h100", "sms": 66}`, or a file with one.
    ///
    /// # Errors
    /// A sentence that says what is known.
    pub fn device_spec(&self) -> Result<DeviceSpec, String> {
        let made = if self.device.starts_with('{') {
            DeviceSpec::from_json(&self.device)
        } else if self.device.ends_with(".json") {
            let text = std::fs::read_to_string(&self.device)
                .map_err(|error| format!("{PREFIX}DEVICE: {}: {error}", self.device))?;
            DeviceSpec::from_json(&text)
        } else {
            DeviceSpec::preset(&self.device)
        };
        made.map_err(|error| format!("{PREFIX}DEVICE: {error}"))
    }

    /// How kernels are executed.
    ///
    /// # Errors
    /// A sentence that names a check that does not exist.
    pub fn exec_options(&self) -> Result<ExecOptions, String> {
        let usual = ExecOptions::default();
        Ok(ExecOptions {
            checks: self.checks()?,
            counters: self.counters,
            max_reports: self.max_reports,
            threads: self.threads.unwrap_or(usual.threads),
            sample: self.sample,
            ..usual
        })
    }

    fn checks(&self) -> Result<Checks, String> {
        let mut checks = Checks::NONE;
        for name in &self.checks {
            match name.as_str() {
                "all" => checks = Checks::ALL,
                "none" => checks = Checks::NONE,
                "uninit" => checks.uninitialised = true,
                "races" => checks.races = true,
                "warp-races" => checks.warp_races = true,
                "conflicts" => checks.write_conflicts = true,
                "divergence" => checks.divergence = true,
                _ => {
                    return Err(format!(
                        "{PREFIX}CHECKS: {name:?} is none of all, none, uninit, races, warp-races, conflicts, \
                         divergence"
                    ));
                }
            }
        }
        Ok(checks)
    }

    /// Sets one value; the error says what would have been one.
    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "config" | "log" => {}
            "device" => value.clone_into(&mut self.device),
            "devices" => {
                self.devices = value.parse().ok().filter(|n| *n <= 64).ok_or("a number up to 64")?;
            }
            "memory" => self.memory_bytes = Some(bytes(value).ok_or("a number of bytes")?),
            "checks" => self.checks = list(value),
            "counters" => self.counters = switch(value)?,
            "threads" => {
                let threads = value.parse().ok().filter(|n| (1..=1024).contains(n));
                self.threads = Some(threads.ok_or("a number from 1 to 1024")?);
            }
            "sample" => {
                let (sampling, ctas): (fn(u64) -> Sampling, _) = match value.strip_prefix("first:") {
                    Some(ctas) => (Sampling::First, ctas),
                    None => (Sampling::Even, value),
                };
                let ctas = ctas.parse().ok().filter(|n| *n > 0);
                self.sample = Some(sampling(ctas.ok_or("a number of CTAs, or first: and a number")?));
            }
            "order" => {
                self.late = match value {
                    "eager" => false,
                    "late" => true,
                    _ => return Err("eager or late"),
                }
            }
            "driver" => {
                let (major, minor) = value.split_once('.').unwrap_or((value, "0"));
                let version = major.parse().ok().zip(minor.parse().ok());
                self.driver =
                    version.filter(|v| (11..=99).contains(&v.0) && v.1 < 10).ok_or("a CUDA version")?;
            }
            "report" => self.report = Some(PathBuf::from(value)),
            "quiet" => self.quiet = switch(value)?,
            "max_reports" => self.max_reports = value.parse().map_err(|_| "a number")?,
            "fatal_reports" => self.fatal_reports = switch(value)?,
            "exit_code" => {
                let code = value.parse().ok().filter(|code| (1..=255).contains(code));
                self.exit_code = Some(code.ok_or("a number from 1 to 255")?);
            }
            "fail" => self.faults = fault::parse(value)?,
            _ => return Err("a setting of cudasim"),
        }
        Ok(())
    }
}

fn parse_file(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut settings = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, value) =
            line.split_once('=').ok_or_else(|| format!("line {}: expected name = value", number + 1))?;
        settings.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(settings)
}

fn list(value: &str) -> Vec<String> {
    let parts = value.split(',').map(|part| part.trim().to_ascii_lowercase());
    parts.filter(|part| !part.is_empty()).collect()
}

fn switch(value: &str) -> Result<bool, &'static str> {
    match value {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" | "" => Ok(false),
        _ => Err("0 or 1"),
    }
}

/// `123`, `64M`, `2.5G`: powers of 1024.
fn bytes(value: &str) -> Option<u64> {
    let value = value.trim_end_matches(['b', 'B', 'i']);
    let (number, unit) = match value.chars().last()?.to_ascii_uppercase() {
        'K' => (&value[..value.len() - 1], 1u64 << 10),
        'M' => (&value[..value.len() - 1], 1 << 20),
        'G' => (&value[..value.len() - 1], 1 << 30),
        'T' => (&value[..value.len() - 1], 1 << 40),
        _ => (value, 1),
    };
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        Err(_) => {
            number.parse::<f64>().ok().filter(|x| *x >= 0.0 && *x < 1e9).map(|x| (x * unit as f64) as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        Config::from_settings(&parse_file(text)?)
    }

    #[test]
    fn a_file_sets_what_it_names_and_nothing_else() {
        let read = config("# two cards\ndevice = H100\ndevices=2 # both\n\nmemory = 1.5G\nfail = alloc:3\n")
            .unwrap();
        assert_eq!(read.device_spec().unwrap().compute_capability, [9, 0]);
        assert_eq!((read.devices, read.memory_bytes), (2, Some(3 << 29)));
        assert_eq!(read.faults.len(), 1);
        assert_eq!(Config { faults: vec![], ..read }.max_reports, Config::default().max_reports);
    }

    #[test]
    fn a_bad_value_is_named_with_what_would_be_right() {
        assert_eq!(
            config("order = sometimes").unwrap_err(),
            "CUDASIM_ORDER: \"sometimes\" is not eager or late"
        );
        assert!(config("colour = red").unwrap_err().contains("CUDASIM_COLOUR"));
        assert!(config("device").unwrap_err().contains("line 1"));
    }

    #[test]
    fn sizes_are_in_powers_of_1024() {
        assert_eq!(bytes("17"), Some(17));
        assert_eq!(bytes("64M"), Some(64 << 20));
        assert_eq!(bytes("2GiB"), Some(2 << 30));
        assert_eq!(bytes("-1"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(bytes("99999999999999999999T"), None);
    }
}
