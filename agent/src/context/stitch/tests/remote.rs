//! What a request says of its parent on another host, by header and by TCP option.

use super::*;

/// A request's header and its TCP option in one trace: the nearer parent, with what the header says
/// beside the ids; in two traces: the header.
#[test]
fn header_against_option() {
    let table = [
        (None, context(6, 60), Evidence::TcpOption),
        (Some(context(6, 50)), context(6, 60), Evidence::TcpOption),
        (Some(context(5, 60)), context(5, 60), Evidence::Header),
    ];
    for (header, expected, evidence) in table {
        let mut stitcher = stitcher();
        let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
        let option = RemoteContext {
            state: String::new(),
            ..context(6, 60)
        };
        stitcher.handle_carried(server, option);
        let has_header = header.is_some();
        if let Some(header) = header {
            stitcher.handle_header(server, header);
        }
        stitcher.handle_ended(server, 2 * MS, "server");
        let out = settled(&mut stitcher);
        let [(_, server)] = out.as_slice() else {
            panic!("one: {out:?}")
        };
        assert_eq!(server.trace_id, expected.trace_id);
        assert_eq!(parent(server), Some((expected.span_id, true)));
        assert_eq!(server.evidence, Some(evidence));
        assert_eq!(server.state == "k=v", has_header);
        assert!(server.links.is_empty(), "{server:?}");
        assert_empty(&stitcher);
    }
}

/// A TCP option and the other end seen on this host: the other end is the parent, and where the
/// user asks for better evidence than options, an option makes a link.
#[test]
fn options_yield() {
    let mut stitcher = stitcher();
    let client = stitcher.handle_started(begin(Kind::Client, MS, wire(1)));
    let server = stitcher.handle_started(begin(Kind::Server, MS, wire(1)));
    stitcher.handle_carried(server, context(6, 60));
    stitcher.handle_ended(server, 2 * MS, "server");
    stitcher.handle_ended(client, 2 * MS, "client");
    let out = settled(&mut stitcher);
    let [(_, client), (_, server)] = out.as_slice() else {
        panic!("two: {out:?}")
    };
    assert_eq!(parent(server), Some((client.span_id, true)));

    let mut stitcher = Stitcher::new(IdGenerator::seeded(7), 10, Evidence::LocalWire);
    let server = stitcher.handle_started(begin(Kind::Server, MS, None));
    stitcher.handle_carried(server, context(6, 60));
    stitcher.handle_ended(server, 2 * MS, "server");
    let out = settled(&mut stitcher);
    let [(_, server)] = out.as_slice() else {
        panic!("one: {out:?}")
    };
    let linked: Vec<_> = server.links.iter().map(|link| link.span_id).collect();
    assert_eq!(
        (parent(server), linked),
        (None, vec![context(6, 60).span_id])
    );
}
