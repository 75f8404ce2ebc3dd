package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

// Requests on their way at a time.
const atOnce = 8

var body = strings.Repeat("b", 3000)

// The same requests in turn: a body by its length, one in chunks, none.
func ask(address string, number int) error {
	kind := []string{"body", "chunks", "none"}[number%3]
	method, content := http.MethodPost, io.Reader(nil)
	switch kind {
	case "body":
		content = strings.NewReader(body)
	case "chunks":
		// Of no known length, because its type hides it.
		content = io.MultiReader(strings.NewReader(body), strings.NewReader(body))
	case "none":
		method = http.MethodGet
	}
	request, err := http.NewRequest(method, "http://"+address+"/go/"+kind, content)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != 200 || string(text) != "ok") {
		err = fmt.Errorf("status %d: %q", response.StatusCode, text)
	}
	return err
}

// Calls the backend when told: for each line of input, `MODE COUNT`, it sends so many requests over
// kept connections and prints a line of JSON: how many failed, and the first failure. It stops at
// the first.
func callWhenTold(address string) {
	output := json.NewEncoder(os.Stdout)
	output.Encode(map[string]bool{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var mode string
		var count int
		fmt.Sscan(lines.Text(), &mode, &count)
		numbers := make(chan int)
		var lock sync.Mutex
		var failed []string
		var group sync.WaitGroup
		for i := 0; i < atOnce; i++ {
			group.Add(1)
			go func() {
				defer group.Done()
				for number := range numbers {
					if err := ask(address, number); err != nil {
						lock.Lock()
						failed = append(failed, err.Error())
						lock.Unlock()
					}
				}
			}()
		}
		for number := 0; number < count; number++ {
			numbers <- number
		}
		close(numbers)
		group.Wait()
		first := ""
		if len(failed) > 0 {
			first = failed[0]
		}
		output.Encode(map[string]any{"done": count, "failed": len(failed), "first": first})
	}
}
