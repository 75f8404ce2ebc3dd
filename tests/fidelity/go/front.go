// A goroutine for each client connection, and one transport whose pool all goroutines share. The
// pool is smaller than the number of clients, and its connections are written by goroutines of
// their own. Standard library only.
//
// With BACK_CERTIFICATE it calls inside TLS and trusts what that file has.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	port, back := os.Args[1], "http://127.0.0.1:"+os.Args[2]
	transport := &http.Transport{
		MaxConnsPerHost:     16,
		MaxIdleConnsPerHost: 16,
	}
	if file := os.Getenv("BACK_CERTIFICATE"); file != "" {
		certificate, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		trusted := x509.NewCertPool()
		trusted.AppendCertsFromPEM(certificate)
		transport.TLSClientConfig = &tls.Config{RootCAs: trusted}
		back = "https://127.0.0.1:" + os.Args[2]
	}
	client := &http.Client{Transport: transport}
	ask := func(path string) ([]byte, error) {
		response, err := client.Get(back + path)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		return io.ReadAll(response.Body)
	}
	go func() {
		for number := 0; ; number++ {
			if _, err := ask(fmt.Sprintf("/background/%d", number)); err != nil {
				log.Print(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	forward := func(response http.ResponseWriter, request *http.Request) {
		body, err := ask(request.URL.Path)
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		response.Write(body)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, http.HandlerFunc(forward)))
}
