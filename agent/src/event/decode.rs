//! Bytes of the ring buffer to [`Event`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{
    connection::{
        self as wire, ClosingStep, ConnectionClosing, ConnectionEstablished, ConnectionOpened,
        Direction, FAMILY_INET, FAMILY_INET6, FAMILY_UNIX, Role, SocketAddresses,
    },
    injection::ContextMinted,
    outgoing_frames::FIELD_BYTES,
    payload::{SocketData, UNKNOWN_DESCRIPTOR, flags},
    process::{self, ExecutionUnit, GoCall, ProcessExec, ProcessExit, ProcessFork, ProcessListen},
    record::{RecordHeader, RecordKind},
    tcp_option::ContextCarried,
};
use thiserror::Error;
use zerocopy::FromBytes;

use super::{
    Carried, Carrier, ConnectionId, Data, Endpoints, Event, EventKind, Exec, HandOff, Minted,
    Pieces, PlaintextOpened, ProcessId, Task, TaskIds, Unit,
};

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the record is shorter than its kind")]
    Short,
    #[error("the record kind {0} is not known")]
    UnknownKind(u16),
    #[error("the address family {0} is not known")]
    UnknownFamily(u16),
    #[error("the closing step {0} is not known")]
    UnknownStep(u8),
    #[error("the pieces of the call are not in order")]
    BrokenPieces,
}

/// Bytes that the record at the start of `bytes` takes in a batch, its padding to 8 included;
/// `None` when there is no whole header.
pub fn padded_length(bytes: &[u8]) -> Option<usize> {
    let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
    let length = (header.length as usize).max(size_of::<RecordHeader>());
    Some(length.next_multiple_of(8).min(bytes.len()))
}

/// The record without the room behind it that was reserved and not used.
pub fn trimmed(reserved: &[u8]) -> &[u8] {
    RecordHeader::read_from_prefix(reserved)
        .ok()
        .and_then(|(header, _)| reserved.get(..header.length as usize))
        .unwrap_or(reserved)
}

/// Decodes the record at the start of `bytes`; what follows it is ignored.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (header, _) = read::<RecordHeader>(bytes)?;
    let bytes = bytes
        .get(..header.length as usize)
        .ok_or(DecodeError::Short)?;
    let kind =
        RecordKind::try_from(header.kind).map_err(|unknown| DecodeError::UnknownKind(unknown.0))?;
    let kind = match kind {
        RecordKind::SocketData => EventKind::Data(data(bytes)?),
        RecordKind::FrameData => EventKind::Data(frames(bytes)?),
        RecordKind::ConnectionOpened => opened(bytes)?,
        RecordKind::ConnectionEstablished => {
            let (record, _) = read::<ConnectionEstablished>(bytes)?;
            EventKind::Established {
                connection: ConnectionId(record.connection),
                endpoints: endpoints(&record.addresses)?,
            }
        }
        RecordKind::ConnectionClosing => closing(bytes)?,
        RecordKind::ProcessExec => exec(bytes)?,
        RecordKind::ProcessFork | RecordKind::ProvisionalFork => {
            let (record, _) = read::<ProcessFork>(bytes)?;
            EventKind::Fork {
                parent: unit(&record.parent),
                child: unit(&record.child),
                is_decided: kind == RecordKind::ProcessFork,
            }
        }
        RecordKind::ProcessExit => {
            let (record, _) = read::<ProcessExit>(bytes)?;
            EventKind::Exit {
                process: unit(&record.unit).process,
            }
        }
        RecordKind::ThreadExit => {
            let (record, _) = read::<ProcessExit>(bytes)?;
            EventKind::ThreadExit {
                unit: unit(&record.unit),
            }
        }
        RecordKind::ProcessListen => {
            let (record, _) = read::<ProcessListen>(bytes)?;
            EventKind::Listen {
                process: unit(&record.unit).process,
                port: record.port,
                traced: record.traced != 0,
            }
        }
        RecordKind::ContextMinted => minted(bytes)?,
        RecordKind::ContextCarried => carried(bytes)?,
        RecordKind::PlaintextOpened => plaintext_opened(bytes)?,
        RecordKind::HandOff => {
            let (record, _) = read::<process::HandOff>(bytes)?;
            let from = unit(&record.unit);
            EventKind::HandOff(HandOff {
                from,
                to: Unit {
                    thread_id: record.woken_thread_id,
                    ..from
                },
                waiting_since_ns: record.waiting_since_ns,
                request_ns: record.request_ns,
                answer_ns: record.answer_ns,
            })
        }
        RecordKind::GoStream => {
            let (record, _) = read::<process::GoStream>(bytes)?;
            EventKind::GoStream {
                process: unit(&record.unit).process,
                task: Task {
                    id: record.task,
                    parent: record.task_parent,
                },
                stream: record.stream,
                writer: (record.writer != 0).then_some(record.writer),
            }
        }
        RecordKind::GoCall => {
            let (record, _) = read::<GoCall>(bytes)?;
            EventKind::GoCall {
                process: unit(&record.unit).process,
                task: Task {
                    id: record.task,
                    parent: record.task_parent,
                },
                descriptor: (record.descriptor != UNKNOWN_DESCRIPTOR).then_some(record.descriptor),
            }
        }
    };
    Ok(Event {
        timestamp_ns: header.timestamp_ns,
        kind,
    })
}

fn read<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(bytes).map_err(|_| DecodeError::Short)
}

fn data(bytes: &[u8]) -> Result<Data<'_>, DecodeError> {
    let (record, rest) = read::<SocketData>(bytes)?;
    let is_set = |flag: u16| record.flags & flag != 0;
    Ok(Data {
        unit: unit(&record.unit),
        task: (record.task != 0).then_some(Task {
            id: record.task,
            parent: record.task_parent,
        }),
        task_ids: (record.task_next != 0).then_some(TaskIds {
            next: record.task_next,
            left: record.task_left,
            allotted: record.task_allotted,
        }),
        descriptor: (record.descriptor != UNKNOWN_DESCRIPTOR).then_some(record.descriptor),
        connection: ConnectionId(record.connection),
        endpoints: endpoints(&record.addresses)?,
        role: Role::from(record.role),
        direction: if is_set(flags::OUTBOUND) {
            Direction::Outbound
        } else {
            Direction::Inbound
        },
        position: record.position,
        original_length: record.original_length,
        tcp_sequence: record.tcp_sequence,
        turn_start: is_set(flags::TURN_START),
        non_blocking: is_set(flags::NON_BLOCKING),
        polled: is_set(flags::POLLED),
        complete: is_set(flags::COMPLETE),
        end_of_stream: is_set(flags::END_OF_STREAM),
        plaintext: is_set(flags::PLAINTEXT),
        bytes: rest
            .get(..record.captured_length as usize)
            .ok_or(DecodeError::Short)?,
        further: Pieces::default(),
        tail: record.tail,
        other_flow: record.other_flow,
    })
}

/// What was captured are pieces, the first of which may be the call's first bytes.
fn frames(bytes: &[u8]) -> Result<Data<'_>, DecodeError> {
    let mut data = data(bytes)?;
    let pieces = Pieces::new(data.bytes, data.original_length)?;
    (data.bytes, data.further) = pieces.split_first();
    Ok(data)
}

fn opened(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, _) = read::<ConnectionOpened>(bytes)?;
    let path = record
        .unix_path
        .get(..record.unix_path_length as usize)
        .unwrap_or_default();
    Ok(EventKind::Opened {
        unit: unit(&record.unit),
        connection: ConnectionId(record.connection),
        endpoints: endpoints(&record.addresses)?,
        role: Role::from(record.role),
        unix_path: unix_path(path),
    })
}

fn plaintext_opened(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, _) = read::<wire::PlaintextOpened>(bytes)?;
    Ok(EventKind::PlaintextOpened(PlaintextOpened {
        unit: unit(&record.unit),
        connection: ConnectionId(record.connection),
        endpoints: endpoints(&record.addresses)?,
        role: Role::from(record.role),
        origins: record.origins,
    }))
}

/// A path ends at its NUL; an abstract name begins with one, which is written `@`, unix(7).
fn unix_path(path: &[u8]) -> Option<String> {
    let text = match path.split_first() {
        None => return None,
        Some((0, name)) => [b"@", name].concat(),
        Some(_) => path
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
    };
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn closing(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, _) = read::<ConnectionClosing>(bytes)?;
    Ok(EventKind::Closing {
        connection: ConnectionId(record.connection),
        step: ClosingStep::from_wire(record.step).ok_or(DecodeError::UnknownStep(record.step))?,
        error: record.error,
        inbound: record.inbound,
        outbound: record.outbound,
    })
}

fn exec(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, rest) = read::<ProcessExec>(bytes)?;
    let part = |from: u32, length: u32| {
        rest.get(from as usize..from.saturating_add(length) as usize)
            .ok_or(DecodeError::Short)
    };
    let arguments_end = record
        .executable_length
        .saturating_add(record.arguments_length);
    let command = record
        .command
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    Ok(EventKind::Exec(Exec {
        process: unit(&record.unit).process,
        parent_pid: record.parent_process_id,
        traced: record.traced.into(),
        command: String::from_utf8_lossy(command).into_owned(),
        executable: String::from_utf8_lossy(part(0, record.executable_length)?).into_owned(),
        arguments: part(record.executable_length, record.arguments_length)?,
        environment: part(arguments_end, record.environment_length)?,
    }))
}

fn minted(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, _) = read::<ContextMinted>(bytes)?;
    Ok(EventKind::Minted(Minted {
        connection: ConnectionId(record.connection),
        position: record.position,
        trace_id: trace_id(record.trace_id),
        span_id: record.span_id.to_ne_bytes(),
        added_at: record.added_at,
        added: record.added,
        carrier: if record.added == FIELD_BYTES {
            Carrier::Field
        } else {
            Carrier::Header
        },
    }))
}

fn carried(bytes: &[u8]) -> Result<EventKind<'_>, DecodeError> {
    let (record, _) = read::<ContextCarried>(bytes)?;
    Ok(EventKind::Carried(Carried {
        connection: ConnectionId(record.connection),
        tcp_sequence: record.tcp_sequence,
        trace_id: trace_id(record.trace_id),
        span_id: record.span_id.to_ne_bytes(),
        flags: record.trace_flags as u8,
    }))
}

/// Words that hold an id as it is written, first byte first.
fn trace_id(words: [u64; 2]) -> [u8; 16] {
    let [first, second] = words.map(u64::to_ne_bytes);
    let mut id = [0; 16];
    for (byte, from) in id.iter_mut().zip(first.into_iter().chain(second)) {
        *byte = from;
    }
    id
}

const fn unit(unit: &ExecutionUnit) -> Unit {
    Unit {
        process: ProcessId::new(unit.process_id, unit.process_start_ns),
        thread_id: unit.thread_id,
    }
}

fn endpoints(addresses: &SocketAddresses) -> Result<Endpoints, DecodeError> {
    let ip = match addresses.family {
        FAMILY_UNIX => {
            let ([local, _], [remote, _]) = (addresses.local, addresses.remote);
            return Ok(Endpoints::Unix { local, remote });
        }
        0 => return Ok(Endpoints::Unknown),
        FAMILY_INET => |address: [u64; 2]| {
            let [word, _] = address;
            IpAddr::V4(Ipv4Addr::from((word as u32).to_ne_bytes()))
        },
        // IPv4 clients of a dual-stack socket are shown as what they are.
        FAMILY_INET6 => |[high, low]: [u64; 2]| {
            let mut bytes = [0; 16];
            for (byte, from) in bytes
                .iter_mut()
                .zip(high.to_ne_bytes().into_iter().chain(low.to_ne_bytes()))
            {
                *byte = from;
            }
            Ipv6Addr::from(bytes).to_canonical()
        },
        other => return Err(DecodeError::UnknownFamily(other)),
    };
    Ok(Endpoints::Inet {
        local: (ip(addresses.local), addresses.local_port),
        remote: (ip(addresses.remote), addresses.remote_port),
        network_namespace: addresses.network_namespace,
    })
}

#[cfg(test)]
mod tests {
    use agent_common::{connection::DirectionState, record::RecordHeader};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut record = SocketData::new_zeroed();
        record.header = RecordHeader {
            kind: RecordKind::SocketData as u16,
            reserved: 0,
            length: size_of::<SocketData>() as u32 + 3,
            timestamp_ns: 77,
        };
        record.unit = ExecutionUnit {
            process_id: 12,
            thread_id: 13,
            process_start_ns: 2_345_678_901,
        };
        record.connection = 9;
        record.addresses.family = FAMILY_INET;
        record.addresses.local_port = 80;
        record.addresses.remote_port = 40_000;
        record.addresses.local = [u32::from_ne_bytes([127, 0, 0, 1]).into(), 0];
        record.addresses.remote = [u32::from_ne_bytes([10, 1, 2, 3]).into(), 0];
        record.position = 100;
        record.original_length = 5;
        record.captured_length = 3;
        record.flags = flags::OUTBOUND | flags::COMPLETE;
        record.role = Role::Server as u8;
        record.other_flow = DirectionState {
            position: 50,
            last_ns: 70,
            tail: [1; 8],
        };
        [record.as_bytes(), b"GET"].concat()
    }

    #[test]
    fn a_data_record_says_who_where_and_what() {
        let bytes = sample();
        let event = decode(&bytes).expect("well-formed");
        assert_eq!(event.timestamp_ns, 77);
        let EventKind::Data(data) = event.kind else {
            panic!("a data record: {event:?}")
        };
        assert_eq!(
            data.unit.process,
            ProcessId {
                pid: 12,
                start_ticks: 234
            }
        );
        assert_eq!(data.bytes, b"GET");
        assert_eq!(data.direction, Direction::Outbound);
        assert!(data.complete && !data.turn_start && !data.end_of_stream);
        assert_eq!(
            data.endpoints,
            Endpoints::Inet {
                local: (IpAddr::from([127, 0, 0, 1]), 80),
                remote: (IpAddr::from([10, 1, 2, 3]), 40_000),
                network_namespace: 0,
            }
        );
        assert_eq!(data.other_flow.position, 50);
        assert_eq!(padded_length(&bytes), Some(bytes.len()));
    }

    /// Scenario: a client reaches a dual-stack listener by IPv4. Guarantee: it is shown as IPv4.
    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut mapped = SocketAddresses::new_zeroed();
        mapped.family = FAMILY_INET6;
        let bytes = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        mapped.remote = zerocopy::transmute!(bytes);
        let Ok(Endpoints::Inet { remote, .. }) = endpoints(&mapped) else {
            panic!("inet")
        };
        assert_eq!(remote.0, IpAddr::from([192, 0, 2, 7]));
    }

    #[test]
    fn truncated_and_unknown_records_are_errors() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..length]),
                Err(DecodeError::Short),
                "length {length}"
            );
        }
        let mut unknown = sample();
        unknown[0] = 99;
        assert_eq!(decode(&unknown), Err(DecodeError::UnknownKind(99)));
    }

    /// Pieces of a call come with their places; what is not in order is refused.
    #[test]
    fn pieces_have_their_places() {
        let with = |kind: RecordKind, pieces: &[u8], original_length: u32| {
            let mut record = sample();
            let head = size_of::<SocketData>();
            record.truncate(head);
            record.extend(pieces);
            let (mut data, _) = SocketData::read_from_prefix(&record).expect("a whole record");
            data.header.kind = kind as u16;
            data.header.length = record.len() as u32;
            data.captured_length = pieces.len() as u32;
            data.original_length = original_length;
            record.splice(..head, data.as_bytes().iter().copied());
            record
        };
        let piece = |offset: u32, bytes: &[u8]| {
            let length = bytes.len() as u32;
            let head = [offset.to_ne_bytes(), length.to_ne_bytes()].concat();
            [head.as_slice(), bytes].concat()
        };
        let both = [piece(0, b"ab"), piece(7, b"cde")].concat();
        let record = with(RecordKind::FrameData, &both, 12);
        let Ok(Event {
            kind: EventKind::Data(data),
            ..
        }) = decode(&record)
        else {
            panic!("no data")
        };
        assert_eq!(data.bytes, b"ab");
        let further: Vec<_> = data.further.into_iter().collect();
        assert_eq!(further, [(7, &b"cde"[..])]);
        assert_eq!(data.uncaptured(), 7);
        for (broken, length) in [
            ([piece(7, b"cde"), piece(0, b"ab")].concat(), 12),
            (both.clone(), 9),
            (both[..both.len() - 1].to_vec(), 12),
            (both[..4].to_vec(), 12),
        ] {
            let record = with(RecordKind::FrameData, &broken, length);
            assert_eq!(decode(&record), Err(DecodeError::BrokenPieces));
        }
    }

    #[test]
    fn unix_names_are_readable() {
        assert_eq!(unix_path(b""), None);
        assert_eq!(
            unix_path(b"/run/app.sock\0\0"),
            Some("/run/app.sock".into())
        );
        assert_eq!(unix_path(b"\0app"), Some("@app".into()));
    }
}
