//! A small HTTP/1.1 client that shows its bytes: tests decide what is sent and in which pieces.

use std::{
    fmt::Debug,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::wait::PATIENCE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection and what was read from it but not yet used.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    unread: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// To a port on 127.0.0.1.
    pub fn open(port: u16) -> Self {
        Self::open_to((Ipv4Addr::LOCALHOST, port))
    }

    pub fn open_to(address: impl ToSocketAddrs + Debug) -> Self {
        let stream = TcpStream::connect(&address)
            .unwrap_or_else(|error| panic!("no connection to {address:?}: {error}"));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out that is not zero");
        stream.set_nodelay(true).expect("an open socket");
        Self {
            stream: Stream::Tcp(stream),
            unread: Vec::new(),
        }
    }

    pub fn open_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a listening unix socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out that is not zero");
        Self {
            stream: Stream::Unix(stream),
            unread: Vec::new(),
        }
    }

    /// Our end's port; 0 for a unix socket.
    pub fn local_port(&self) -> u16 {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().expect("an open socket").port(),
            Stream::Unix(_) => 0,
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes.as_ref()),
            Stream::Unix(stream) => stream.write_all(bytes.as_ref()),
        }
        .expect("the peer takes bytes");
    }

    /// Sends a bodiless request with the fields it needs plus `headers` (complete lines).
    pub fn request(&mut self, method: &str, path: &str, headers: &str) {
        self.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n"
        ));
    }

    /// A GET and its answer.
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, "");
        self.response("GET")
    }

    /// Says that we send no more, and keeps reading.
    pub fn shut_down_sending(&self) {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
        .expect("an open socket");
    }

    /// Reads one response to a request of this method; interim ones are answers too.
    pub fn response(&mut self, method: &str) -> Response {
        self.try_response(method)
            .expect("a whole response before the connection ends")
    }

    /// As [`Self::response`]; `None` when the connection ends first.
    pub fn try_response(&mut self, method: &str) -> Option<Response> {
        let head = self.read_to(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status = lines
            .next()?
            .split(' ')
            .nth(1)?
            .parse()
            .expect("a status code");
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
        };
        let bare = method == "HEAD" || status < 200 || status == 204 || status == 304;
        response.body = if bare {
            Vec::new()
        } else if response.header("transfer-encoding") == Some("chunked") {
            self.chunks()?
        } else if let Some(length) = response.header("content-length") {
            self.read_exactly(length.parse().expect("a content length"))?
        } else {
            self.read_to_end()
        };
        Some(response)
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.read_to(b"\r\n")?).into_owned();
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            body.extend(self.read_exactly(size)?);
            self.read_exactly(2)?;
        }
        while self.read_to(b"\r\n")?.len() > 2 {}
        Some(body)
    }

    /// Reads up to and with `end`.
    fn read_to(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self
                .unread
                .windows(end.len())
                .position(|window| window == end)
            {
                return Some(self.unread.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    pub fn read_exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            self.fill()?;
        }
        Some(self.unread.drain(..length).collect())
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().is_some() {}
        std::mem::take(&mut self.unread)
    }

    fn fill(&mut self) -> Option<()> {
        let mut buffer = vec![0; 64 * 1024];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut buffer),
            Stream::Unix(stream) => stream.read(&mut buffer),
        };
        // A reset is an end like any other to the caller.
        let length = read.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..length]);
        (length > 0).then_some(())
    }
}

/// A server that reads a request and never answers it.
#[derive(Debug)]
pub struct Holder {
    listener: TcpListener,
    held: Vec<TcpStream>,
}

impl Holder {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        Self {
            listener,
            held: Vec::new(),
        }
    }

    pub fn url(&self) -> String {
        format!(
            "http://{}",
            self.listener
                .local_addr()
                .expect("a bound socket has an address")
        )
    }

    /// Waits for the next connection's request head.
    pub fn wait_for_request(&mut self) -> String {
        let (mut stream, _) = self.listener.accept().expect("a client connects");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out that is not zero");
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        while !head.ends_with(b"\r\n\r\n") {
            let length = stream
                .read(&mut buffer)
                .expect("the client sends its request");
            assert!(length > 0, "the client left");
            head.extend_from_slice(&buffer[..length]);
        }
        self.held.push(stream);
        String::from_utf8_lossy(&head).into_owned()
    }
}

/// One GET on a connection of its own.
pub fn get(port: u16, path: &str) -> Response {
    Connection::open(port).get(path)
}

/// One POST on a connection of its own.
pub fn post(port: u16, path: &str, body: &[u8]) -> Response {
    let mut connection = Connection::open(port);
    connection.request("POST", path, &format!("Content-Length: {}\r\n", body.len()));
    connection.send(body);
    connection.response("POST")
}
