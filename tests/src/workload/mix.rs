//! Requests to nginx whose answers differ by path, so that a span which mixes two of them shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::nginx::Nginx;
use crate::{http::Connection, receiver::Count};

/// Paths and what nginx answers to them.
pub const ROUTES: [(&str, u16); 4] = [
    ("/hello", 200),
    ("/status/404", 404),
    ("/status/503", 503),
    ("/empty", 204),
];

/// Threads that ask at one time.
const THREADS: u64 = 4;

/// How requests share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One for each request.
    Short,
    /// One for each thread.
    Kept,
}

/// Asks so many times, the routes in turn, and checks each answer.
pub fn ask(nginx: &Nginx, requests: u64, connections: Connections) {
    let port = nginx.port();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let share = requests / THREADS + u64::from(thread < requests % THREADS);
            scope.spawn(move || {
                let mut client = Client::new(port, connections);
                (0..share).for_each(|number| client.ask(thread + number));
            });
        }
    });
}

/// Asks until it is told to stop, in the background.
#[derive(Debug)]
pub struct Background {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Half of the threads keep their connection, the others open one for each request.
    pub fn start(nginx: &Nginx) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let port = nginx.port();
        let start = |connections| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            thread::spawn(move || work(port, connections, &stop, &asked))
        };
        let threads = [Connections::Short, Connections::Kept].map(start).into();
        Self {
            stop,
            asked,
            threads,
        }
    }

    /// Requests answered so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends it and gives the requests answered; panics when an answer was not as it must be.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every answer is right");
        }
        self.asked.load(Ordering::Relaxed)
    }
}

fn work(port: u16, connections: Connections, stop: &AtomicBool, asked: &AtomicU64) {
    let mut client = Client::new(port, connections);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        client.ask(number);
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

struct Client {
    port: u16,
    kept: Option<Connection>,
    connections: Connections,
}

impl Client {
    const fn new(port: u16, connections: Connections) -> Self {
        Self {
            port,
            kept: None,
            connections,
        }
    }

    fn ask(&mut self, number: u64) {
        let (path, status) = ROUTES[number as usize % ROUTES.len()];
        let mut connection = self
            .kept
            .take()
            .unwrap_or_else(|| Connection::open(self.port));
        let header = match self.connections {
            Connections::Short => "Connection: close\r\n",
            Connections::Kept => "",
        };
        connection.request("GET", path, header);
        assert_eq!(connection.response("GET").status, status, "{path}");
        if self.connections == Connections::Kept {
            self.kept = Some(connection);
        }
    }
}

/// Panics when a span says what was never asked or answered. Its status may be missing, never
/// another's. Gives the number of spans.
pub fn assert_right(counts: &[Count], service: &str) -> u64 {
    for row in counts {
        let right = ROUTES.iter().any(|(path, status)| {
            row.path.as_deref() == Some(*path)
                && row.status.is_none_or(|seen| seen == i64::from(*status))
        });
        let expected = row.service == service && row.kind == "SERVER";
        assert!(right && expected, "a wrong span: {row:?} in {counts:?}");
    }
    counts.iter().map(|row| row.count).sum()
}
