// A server for tests, with Go's standard library alone. Prints {"port", "pid"}.
//
//	/mixed/N   calls the backend for N, in one of five ways by N modulo 5: from the handler, by a
//	           reverse proxy, from three goroutines at once, from a goroutine and one that it
//	           starts, and from a goroutine that outlives the request
//	/...       says the path
//
// With -call it is a client instead, see callWhenTold.
package main

import (
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
	backend    = flag.String("backend", "", "host:port that calls go to")
	told       = flag.String("call", "", "host:port that is called when told; no server then")
	background = flag.Duration("background", 0, "calls the backend this often, for no request")
)

// More connections than any test has requests at once: none waits for another's.
const kept = 1024

var transport = &http.Transport{MaxIdleConns: kept, MaxIdleConnsPerHost: kept}

func call(path string) {
	client := http.Client{Transport: transport, Timeout: 20 * time.Second}
	response, err := client.Get("http://" + *backend + path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "call:", path, err)
		return
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
}

func proxy() http.Handler {
	target := &url.URL{Scheme: "http", Host: *backend}
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
	fmt.Fprintln(os.Stderr, http.Serve(listener, nil))
}
