//! Progress on the terminal: each step with the seconds since the start, and signs of life while it works.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A terminal sees the seconds count; a log gets a line now and then.
const TICK_TERMINAL: Duration = Duration::from_secs(1);
const TICK_LOG: Duration = Duration::from_secs(20);

/// Time of the first call: the program's start for all purposes here.
pub fn started() -> Instant {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    *STARTED.get_or_init(Instant::now)
}

/// One line, with the seconds since the start before it.
pub fn say(text: impl AsRef<str>) {
    let seconds = started().elapsed().as_secs_f32();
    for line in text.as_ref().lines() {
        clear();
        println!("[{seconds:6.1} s] {line}");
    }
    let _ = std::io::stdout().flush();
}

/// Runs `work`, showing that it does and how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let (done, ticker) = start_ticker(name.to_owned());
    let result = work();
    drop(done);
    let _ = ticker.join();
    say(format!("{name}: {:.1} s", begun.elapsed().as_secs_f32()));
    result
}

fn start_ticker(name: String) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (done, wait) = mpsc::channel::<()>();
    let terminal = std::io::stdout().is_terminal();
    let tick = if terminal { TICK_TERMINAL } else { TICK_LOG };
    let begun = Instant::now();
    let ticker = std::thread::spawn(move || {
        if terminal {
            print!("\r{name} ...");
            let _ = std::io::stdout().flush();
        }
        while wait.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
            let seconds = begun.elapsed().as_secs();
            if terminal {
                print!("\r{name} ... {seconds} s ");
                let _ = std::io::stdout().flush();
            } else {
                say(format!("{name} ... {seconds} s"));
            }
        }
    });
    (done, ticker)
}

fn clear() {
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K");
    }
}
