//! Where pictures come from, servers that misbehave included.

use super::*;

fn fetch(text: &str, limits: &FetchLimits) -> Result<Vec<u8>, Error> {
    ImageSource::parse(text, Path::new("/nowhere"))?.fetch(limits)
}

#[test]
fn every_notation_of_the_model_card_finds_the_picture() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = png(3, 2);
    std::fs::write(dir.path().join("a b.png"), &bytes).unwrap();
    let absolute = dir.path().join("a b.png").to_str().unwrap().to_string();
    let digits = STANDARD.encode(&bytes);
    let server = serve(|mut stream| {
        respond(&mut stream, "200 OK", &png(3, 2));
    });
    for text in [
        "a b.png".to_string(),
        absolute.clone(),
        format!("file://{absolute}"),
        format!("file://{}", absolute.replace(' ', "%20")),
        format!("FILE://localhost{absolute}"),
        "file://a%20b.png".to_string(),
        format!("data:image;base64,{digits}"),
        format!("data:image/png;base64,{digits}"),
        format!("data:image/png;charset=x;base64,{}\n", digits.trim_end_matches('=')),
        format!("{server}/a.png"),
    ] {
        let source = ImageSource::parse(&text, dir.path()).unwrap();
        assert_eq!(source.fetch(&FetchLimits::default()).unwrap(), bytes, "{text}");
    }
}

#[test]
fn other_notations_are_refused() {
    for (text, parts) in [
        ("", ["empty", "give"]),
        ("ftp://host/a.png", ["ftp", "http://"]),
        ("file://", ["no path", "file:///"]),
        ("data:text/plain;base64,AAAA", ["not an image", "data:image/"]),
        ("data:image/png,AAAA", ["not base64", "data:image/"]),
        ("data:image/png;base64", ["comma", "data:image/"]),
        ("data:image/png;base64,A*AA", ["valid base64", "data:image/"]),
        ("file:///%ff", ["UTF-8", "path"]),
    ] {
        assert_says(ImageSource::parse(text, Path::new(".")), &parts);
    }
}

#[test]
fn names_in_messages_are_short() {
    let long = format!("http://127.0.0.1:1/{}", "x".repeat(5000));
    assert!(problem(fetch(&long, &FetchLimits::default())).len() < 400);
    let inline = format!("data:image/png;base64,{}", STANDARD.encode([7; 4000]));
    let source = ImageSource::parse(&inline, Path::new(".")).unwrap();
    assert_eq!(source.name(), "data:image/png;base64,...");
}

#[test]
fn names_in_messages_hold_no_secrets_and_fill_one_line() {
    let name = |text: &str| ImageSource::parse(text, Path::new(".")).unwrap().name().to_string();
    assert_eq!(name("https://me:pass@host/a.png?key=secret#part"), "https://host/a.png...");
    assert_eq!(name("HTTP://host?key=secret"), "http://host...");
    assert_eq!(name("http://host/a@b.png"), "http://host/a@b.png");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for url in [
        format!("http://me:secret@127.0.0.1:{port}/a.png?secret"),
        "http://me:secret@/a".into(),
        "http://ho st/?secret".into(),
    ] {
        let message = problem(fetch(&url, &short()));
        assert!(message.contains("http://") && !message.contains("secret"), "{message}");
    }
    for text in ["/no/such\nerror: forged\u{1b}[2K\u{202e}", "a\nb://c", "data:text\nforged,AAAA"] {
        let message = problem(fetch(text, &FetchLimits::default()));
        assert!(message.contains("\\n") && !message.contains(['\n', '\u{1b}', '\u{202e}']), "{message:?}");
    }
    let request = Error::Request { field: "a\nb".into(), found: "c\rd".into(), expected: "e".into() };
    assert_eq!(request.to_string(), "request: a\\nb: found c\\rd, expected e");
}

#[test]
fn files_are_read_where_the_limits_allow_it() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside.png"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join("a.png"), png(3, 2)).unwrap();
    std::fs::write(&outside, png(3, 2)).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let under = FetchLimits { files: FileAccess::Under(inside.clone()), ..FetchLimits::default() };
    let none = FetchLimits { files: FileAccess::None, ..FetchLimits::default() };
    let image = |text: &str| ImageSource::parse(text, &inside).unwrap();
    assert_eq!(image("a.png").fetch(&under).unwrap(), png(3, 2));
    assert_eq!(image(&text(&inside.join("../inside/a.png"))).fetch(&under).unwrap(), png(3, 2));
    assert_says(image("b.png").fetch(&under), &["b.png", "No such file"]);
    let mut forbidden = vec![
        text(&outside),
        format!("file://{}", text(&outside)),
        "../outside.png".into(),
        "../missing.png".into(),
        "/nowhere/missing.png".into(),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, inside.join("link.png")).unwrap();
        forbidden.push("link.png".into());
    }
    for path in forbidden {
        assert_says(image(&path).fetch(&under), &["not in the directory", "data URI"]);
        assert!(image(&path).fetch(&none).is_err());
        // Reading sizes and videos is reading too.
        for file in [None, Some(Default::default())] {
            let request = VisualRequest {
                kind: VisualKind::Video,
                sources: vec![image(&path)],
                options: Default::default(),
                file,
            };
            let result = processor().load(&[request], &under, &|_| Ok(())).unwrap_err().to_string();
            assert!(result.contains("not in the directory"), "{path}: {result}");
        }
    }
    assert_says(image("a.png").fetch(&none), &["a.png", "reads no files"]);
    let inline = format!("data:image/png;base64,{}", STANDARD.encode(png(3, 2)));
    assert_eq!(image(&inline).fetch(&none).unwrap(), png(3, 2));
}

#[test]
fn servers_are_asked_where_the_limits_allow_it() {
    let server = serve(|mut stream| respond(&mut stream, "200 OK", &png(3, 2)));
    let limits = |urls| FetchLimits { urls, ..short() };
    assert_eq!(fetch(&server, &limits(UrlAccess::Any)).unwrap(), png(3, 2));
    assert_says(fetch(&server, &limits(UrlAccess::None)), &[&server, "downloads nothing"]);
    assert_says(fetch(&server, &limits(UrlAccess::Public)), &[&server, "not public"]);
    for host in ["localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1"] {
        let message = problem(fetch(&format!("http://{host}:1/a"), &limits(UrlAccess::Public)));
        assert!(message.contains("not public") || message.contains("unknown"), "{host}: {message}");
    }
}

#[test]
fn pictures_of_more_pixels_than_the_limit_are_refused_by_their_header() {
    let request = |source| VisualRequest {
        kind: VisualKind::Image,
        sources: vec![source],
        options: Default::default(),
        file: None,
    };
    let server = serve(|mut stream| respond(&mut stream, "200 OK", &png(60, 50)));
    let limits = |max_pixels| FetchLimits { max_pixels, ..FetchLimits::default() };
    for source in [
        ImageSource::memory("a.png", png(60, 50)),
        ImageSource::parse(&format!("{server}/a.png"), Path::new("")).unwrap(),
    ] {
        let request = [request(source)];
        let load = |limits: &FetchLimits| processor().load(&request, limits, &|_| Ok(()));
        assert_says(load(&limits(2999)), &["a.png", "60x50 = 3000 pixels", "limit of 2999"]);
        assert!(load(&limits(3000)).is_ok());
    }
}

#[test]
fn missing_files_and_files_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    assert_says(fetch("/nowhere/a.png", &limits), &["/nowhere/a.png", "read", "No such file"]);
    assert_says(fetch(dir.path().to_str().unwrap(), &limits), &["directory"]);
    assert_says(fetch("/dev/zero", &limits), &["not a regular file"]);
    assert!(fetch("a\0b", &limits).is_err());
    let pipe = dir.path().join("pipe");
    if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|s| s.success()) {
        assert_says(fetch(pipe.to_str().unwrap(), &limits), &["not a regular file"]);
    }
}

#[test]
fn files_and_inline_pictures_above_the_limit_are_refused() {
    let limits = FetchLimits { max_bytes: 10, ..Default::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, [0; 11]).unwrap();
    assert_says(fetch(path.to_str().unwrap(), &limits), &["more than 10 bytes"]);
    std::fs::write(&path, [0; 10]).unwrap();
    assert_eq!(fetch(path.to_str().unwrap(), &limits).unwrap().len(), 10);
    let inline = format!("data:image/png;base64,{}", STANDARD.encode([7; 11]));
    assert_says(fetch(&inline, &limits), &["more than 10 bytes"]);
}

/// A server on a free port of this machine that hands every connection to `answer` after the
/// request has come in. Ends with the test process.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = (&stream).read(&mut [0; 4096]);
                answer(stream);
            });
        }
    });
    url
}

fn respond(stream: &mut TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

fn short() -> FetchLimits {
    FetchLimits {
        max_bytes: 100_000,
        timeout: Duration::from_millis(600),
        max_redirects: 3,
        ..FetchLimits::default()
    }
}

#[track_caller]
fn assert_stops(url: &str, parts: &[&str]) {
    let start = Instant::now();
    assert_says(fetch(url, &short()), parts);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn an_unreachable_server_is_an_error_with_the_url() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/a.png");
    assert_stops(&url, &[&url, "refused"]);
    assert_stops("http://", &["http://"]);
    assert_stops("http://host.invalid/a.png", &["host.invalid"]);
}

#[test]
fn an_error_status_is_an_error() {
    let server = serve(|mut stream| respond(&mut stream, "404 Not Found", b"no"));
    assert_stops(&server, &[&server, "status 404"]);
}

#[test]
fn an_announced_length_above_the_limit_stops_before_the_body() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n");
        std::thread::sleep(Duration::from_secs(30));
    });
    assert_stops(&server, &["more than 100000 bytes"]);
}

#[test]
fn a_body_that_never_ends_stops_at_the_size_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[0; 4096]).is_ok() {}
    });
    assert_stops(&server, &["more than 100000 bytes"]);
}

#[test]
fn a_body_that_trickles_stops_at_the_time_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_header_that_trickles_stops_at_the_time_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X: y\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_server_that_never_answers_stops_at_the_time_limit() {
    let server = serve(|_stream| std::thread::sleep(Duration::from_secs(30)));
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_redirect_loop_stops() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n");
    });
    assert_stops(&server, &[&server, "redirects more than 3 times"]);
}

#[test]
fn a_body_shorter_than_announced_is_an_error() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    });
    assert_stops(&server, &[&server, "download failed"]);
}

// Loading

#[test]
fn loading_in_parallel_keeps_the_order_and_times_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    let source = |width: u32| {
        let path = dir.path().join(format!("{width}.png"));
        std::fs::write(&path, png(width, 90)).unwrap();
        ImageSource::file(path)
    };
    let image = |w| VisualRequest {
        kind: VisualKind::Image,
        sources: vec![source(w)],
        options: Default::default(),
        file: None,
    };
    let video = VisualRequest {
        kind: VisualKind::Video,
        sources: vec![source(70), source(70), source(70)],
        options: Default::default(),
        file: None,
    };
    let mut requests: Vec<VisualRequest> = (0..10).map(|i| image(100 + 50 * i)).collect();
    requests.insert(4, video);
    let visuals = processor().load(&requests, &FetchLimits::default(), &|_| Ok(())).unwrap();
    let widths: Vec<u32> = visuals.iter().map(|v| v.original.0).collect();
    assert_eq!(widths, [100, 150, 200, 250, 70, 300, 350, 400, 450, 500, 550]);
    assert_eq!((visuals[4].grid.t, visuals[4].frames.len()), (2, 3));
    assert!(visuals.iter().all(|v| !v.timings.decode.is_zero() && !v.timings.resize.is_zero()));

    requests[7].sources = vec![ImageSource::memory("broken", b"no picture".to_vec())];
    assert_says(processor().load(&requests, &FetchLimits::default(), &|_| Ok(())), &["broken"]);
    requests[7].sources = vec![source(70), source(70)];
    assert_says(processor().load(&requests, &FetchLimits::default(), &|_| Ok(())), &["2 frames"]);
    requests[7].sources = vec![];
    assert_says(processor().load(&requests, &FetchLimits::default(), &|_| Ok(())), &["no frame"]);
    let none: Vec<Visual> = processor().load(&[], &FetchLimits::default(), &|_| Ok(())).unwrap();
    assert!(none.is_empty());
}

#[test]
fn the_tokens_of_pictures_are_told_before_any_is_decoded() {
    let server = serve(|mut stream| respond(&mut stream, "200 OK", &png(56, 84)));
    // Files that end after their header: decoding any is an error.
    let header = |width, height| ImageSource::memory("header", png(width, height)[..60].to_vec());
    let request = |kind, sources| VisualRequest { kind, sources, options: Default::default(), file: None };
    let here = [
        request(VisualKind::Image, vec![header(56, 84)]),
        request(VisualKind::Video, vec![header(56, 56), header(56, 56), header(56, 56)]),
        request(VisualKind::Image, vec![ImageSource::pixels(56, 56, vec![0; 56 * 56 * 3]).unwrap()]),
    ];
    let told = std::sync::Mutex::new(Vec::new());
    let room = |most: usize| {
        let told = &told;
        move |tokens: usize| {
            told.lock().unwrap().push(tokens);
            if tokens <= most {
                return Ok(());
            }
            Err(Error::Request { field: "room".into(), found: tokens.to_string(), expected: "less".into() })
        }
    };
    let limits = FetchLimits::default();
    // 6, two slices of 4, and 4 tokens.
    assert_says(processor().load(&here, &limits, &room(17)), &["room: found 18"]);
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [18]);
    assert_says(processor().load(&here, &limits, &room(18)), &["header"]);
    told.lock().unwrap().clear();
    let url = ImageSource::parse(&format!("{server}/a.png"), Path::new("")).unwrap();
    let there = [here[2].clone(), request(VisualKind::Image, vec![url])];
    assert_says(processor().load(&there, &limits, &room(9)), &["room: found 10"]);
    assert!(processor().load(&there, &limits, &room(10)).is_ok());
    assert_eq!(told.lock().unwrap().iter().max(), Some(&10));
}

// Arbitrary input

proptest! {
    #[test]
    fn decode_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, "any");
    }

    #[test]
    fn decode_takes_damaged_files(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value: u8) {
        thread_local!(static FILES: Vec<Vec<u8>> =
            golden("pillow_decode.json").iter().map(|c| base64(&c["file"])).collect());
        FILES.with(|files| {
            let mut bytes = which.get(files).clone();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = decode(&bytes, "damaged");
        });
    }

    #[test]
    fn parse_takes_any_text(text in ".{0,60}", tail in "(data:image|file://|http://|;base64,|%[0-9a-f]|,){0,4}") {
        let _ = ImageSource::parse(&text, Path::new("/"));
        let _ = ImageSource::parse(&format!("{tail}{text}"), Path::new("/"));
    }
}
