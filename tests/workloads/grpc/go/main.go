// The service and its client by grpc-go: see README.md. Of Debian's golang-google-grpc-dev, whose
// release knows no codec for a server but by the deprecated option.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var kinds = []string{"Unary", "Collect", "Watch", "Chat", "Missing", "Broken", "Slow", "Gone"}

var names = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED",
	"NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
	"DATA_LOSS", "UNAUTHENTICATED"}

const (
	large    = 20_000
	deadline = 50 * time.Millisecond
	own      = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

// What calls carried, by method.
var (
	seen   = map[string][]string{}
	seeing sync.Mutex
)

// plain passes bytes on as they are.
type plain struct{}

func (plain) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (plain) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (plain) Name() string   { return "plain" }
func (plain) String() string { return "plain" }

func message(text string) *[]byte {
	data := []byte(text)
	return &data
}

func serve(_ interface{}, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	kind := strings.TrimRight(method[strings.LastIndex(method, "/")+1:], "0123456789")
	carried, _ := metadata.FromIncomingContext(stream.Context())
	seeing.Lock()
	if seen[method[1:]] == nil {
		seen[method[1:]] = []string{}
	}
	seen[method[1:]] = append(seen[method[1:]], carried.Get("traceparent")...)
	seeing.Unlock()
	for {
		var received []byte
		err := stream.RecvMsg(&received)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if kind == "Chat" {
			if err := stream.SendMsg(&received); err != nil {
				return err
			}
		}
	}
	switch kind {
	case "Chat":
		return nil
	case "Missing":
		return status.Error(codes.NotFound, "no such thing")
	case "Slow":
		<-stream.Context().Done()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	length := 5
	if kind == "Watch" {
		length = large
	}
	if err := stream.SendMsg(message(strings.Repeat("a", length))); err != nil {
		return err
	}
	switch kind {
	case "Watch":
		for i := 0; i < 2; i++ {
			time.Sleep(10 * time.Millisecond)
			if err := stream.SendMsg(message("more")); err != nil {
				return err
			}
		}
	case "Broken":
		return status.Error(codes.Internal, "broken")
	case "Gone":
		<-stream.Context().Done()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	return nil
}

type result struct {
	Method   string `json:"method"`
	Status   string `json:"status"`
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	StartNs  int64  `json:"start_ns"`
	EndNs    int64  `json:"end_ns"`
}

func call(connection *grpc.ClientConn, number, methods int) result {
	kind := kinds[number%len(kinds)]
	method := fmt.Sprintf("/shop.Store/%s%d", kind, number%methods)
	made := result{Method: method[1:], Sent: 1, StartNs: time.Now().UnixNano()}
	ctx := context.Background()
	if os.Getenv("SEND_OWN") != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", own)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if kind == "Slow" {
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	var err error
	if kind == "Unary" || kind == "Missing" {
		var received []byte
		err = connection.Invoke(ctx, method, message("hello"), &received)
		if err == nil {
			made.Received = 1
		}
	} else {
		err = stream(ctx, cancel, connection, kind, method, &made)
	}
	made.Status = names[status.Code(err)]
	made.EndNs = time.Now().UnixNano()
	return made
}

func stream(ctx context.Context, cancel func(), connection *grpc.ClientConn, kind, method string, made *result) error {
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := connection.NewStream(ctx, description, method)
	if err != nil {
		return err
	}
	if kind == "Collect" || kind == "Chat" {
		made.Sent = 3
	}
	for i := 0; i < made.Sent; i++ {
		if err := stream.SendMsg(message("hello")); err != nil && err != io.EOF {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var received []byte
		err := stream.RecvMsg(&received)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		made.Received++
		if kind == "Gone" {
			cancel()
		}
	}
}

func startServer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{grpc.CustomCodec(plain{}), grpc.UnknownServiceHandler(serve)}
	if certificate := os.Getenv("TLS_CERTIFICATE"); certificate != "" {
		secure, err := credentials.NewServerTLSFromFile(certificate, os.Getenv("TLS_KEY"))
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(secure))
	}
	server := grpc.NewServer(options...)
	fmt.Printf("{\"port\": %d, \"pid\": %d}\n", listener.Addr().(*net.TCPAddr).Port, os.Getpid())
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		seeing.Lock()
		json.NewEncoder(os.Stdout).Encode(seen)
		seeing.Unlock()
	}()
	return server.Serve(listener)
}

func startClient(port string, count, parallel, rounds int) error {
	fmt.Printf("{\"pid\": %d}\n", os.Getpid())
	input := bufio.NewReader(os.Stdin)
	if _, err := input.ReadString('\n'); err != nil {
		return err
	}
	security := grpc.WithInsecure()
	if authority := os.Getenv("TLS_AUTHORITY"); authority != "" {
		secure, err := credentials.NewClientTLSFromFile(authority, "")
		if err != nil {
			return err
		}
		security = grpc.WithTransportCredentials(secure)
	}
	connection, err := grpc.Dial("127.0.0.1:"+port, security,
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})))
	if err != nil {
		return err
	}
	defer connection.Close()
	if rounds == 0 {
		calls(connection, 0, count, parallel, count)
		return nil
	}
	calls(connection, 0, count, parallel, rounds)
	if _, err := input.ReadString('\n'); err != nil {
		return err
	}
	calls(connection, count, 2*count, parallel, rounds)
	input.ReadString('\n')
	return nil
}

func calls(connection *grpc.ClientConn, from, to, parallel, methods int) {
	numbers := make(chan int)
	output := json.NewEncoder(os.Stdout)
	var writing sync.Mutex
	var workers sync.WaitGroup
	for i := 0; i < parallel; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range numbers {
				made := call(connection, number, methods)
				writing.Lock()
				output.Encode(made)
				writing.Unlock()
			}
		}()
	}
	for number := from; number < to; number++ {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
}

func main() {
	var err error
	if os.Args[1] == "serve" {
		err = startServer()
	} else {
		count, _ := strconv.Atoi(os.Args[3])
		parallel, _ := strconv.Atoi(os.Args[4])
		rounds := 0
		if len(os.Args) > 5 {
			rounds, _ = strconv.Atoi(os.Args[5])
		}
		err = startClient(os.Args[2], count, parallel, rounds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
