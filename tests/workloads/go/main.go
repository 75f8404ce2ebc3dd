// A server for tests, with Go's standard library alone. Prints {"port", "pid"}.
//
//	/mixed/N   calls the backend for N, in one of five ways by N modulo 5: from the handler, by a
//	           reverse proxy, from three goroutines at once, from a goroutine and one that it
//	           starts, and from a goroutine that outlives the request
//	/call/...  calls the backend for the rest of the path, from the handler
//	/bytes/N, /chunked/N, /status/N, /echo   as their names say
//	/...       says the path
//
// With -certificate and -key it speaks TLS, with -authority its backend does; over TLS both offer
// HTTP/2, without -http1.
//
// With -load it is a client instead: it asks a URL -requests times by -clients connections, with the
// request's number for `{}`, and prints how many answers had which status.
//
// With -call it is a client, too, see callWhenTold.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	backend     = flag.String("backend", "", "host:port that calls go to")
	load        = flag.String("load", "", "URL that is asked; no server then")
	requests    = flag.Int("requests", 1, "how often")
	clients     = flag.Int("clients", 1, "by how many connections, each with a client of its own")
	told        = flag.String("call", "", "host:port that is called when told; no server then")
	certificate = flag.String("certificate", "", "file of the server's certificate")
	key         = flag.String("key", "", "file of its key")
	authority   = flag.String("authority", "", "file of the certificate that the backend's is signed by")
	http1       = flag.Bool("http1", false, "no HTTP/2")
	background  = flag.Duration("background", 0, "calls the backend this often, for no request")
)

// More connections than any test has requests at once: none waits for another's.
const kept = 1024

var transport = &http.Transport{MaxIdleConns: kept, MaxIdleConnsPerHost: kept}

func call(path string) {
	client := http.Client{Transport: transport, Timeout: 20 * time.Second}
	response, err := client.Get(scheme() + "://" + *backend + path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "call:", path, err)
		return
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
}

func scheme() string {
	if *authority == "" {
		return "http"
	}
	return "https"
}

// Trusts the authority.
func trust() error {
	if *authority == "" {
		return nil
	}
	text, err := os.ReadFile(*authority)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	transport.ForceAttemptHTTP2 = !*http1
	return nil
}

func serve(listener net.Listener) error {
	if *certificate == "" {
		return http.Serve(listener, nil)
	}
	server := http.Server{}
	if *http1 {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	return server.ServeTLS(listener, *certificate, *key)
}

func number(r *http.Request) int {
	number, _ := strconv.Atoi(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	return number
}

func simple() {
	http.HandleFunc("/bytes/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(number(r)))
		io.WriteString(w, strings.Repeat("b", number(r)))
	})
	http.HandleFunc("/chunked/", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("c", number(r)))
		w.(http.Flusher).Flush()
		io.WriteString(w, "end")
	})
	http.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(number(r))
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		// Whole: HTTP/1 servers of Go read no more of a request once they answer.
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	http.HandleFunc("/call/", func(w http.ResponseWriter, r *http.Request) {
		call(strings.TrimPrefix(r.URL.Path, "/call"))
	})
}

func proxy() http.Handler {
	target := &url.URL{Scheme: scheme(), Host: *backend}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	return http.StripPrefix("/mixed", proxy)
}

func fan(path string) {
	var group sync.WaitGroup
	for i := 0; i < 3; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			call(fmt.Sprintf("%s/%d", path, i))
		}(i)
	}
	group.Wait()
}

func deep(path string) {
	done := make(chan struct{})
	go func() {
		call(path + "/child")
		go func() {
			call(path + "/grandchild")
			close(done)
		}()
	}()
	<-done
}

func later(path string) {
	go func() {
		time.Sleep(2 * time.Millisecond)
		call(path + "/later")
	}()
}

func main() {
	flag.Parse()
	if err := trust(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if *load != "" {
		loadAll()
		return
	}
	if *told != "" {
		callWhenTold(*told)
		return
	}
	proxied := proxy()
	http.HandleFunc("/mixed/", func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/mixed")
		number, _ := strconv.Atoi(path[1:])
		switch number % 5 {
		case 0:
			call(path)
		case 1:
			proxied.ServeHTTP(w, r)
		case 2:
			fan(path)
		case 3:
			deep(path)
		case 4:
			later(path)
		}
	})
	simple()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path)
	})
	if *background > 0 {
		go func() {
			for range time.Tick(*background) {
				call("/background")
			}
		}()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ready := map[string]int{"pid": os.Getpid(), "port": listener.Addr().(*net.TCPAddr).Port}
	json.NewEncoder(os.Stdout).Encode(ready)
	fmt.Fprintln(os.Stderr, serve(listener))
}
