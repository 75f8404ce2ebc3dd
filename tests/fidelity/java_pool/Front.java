import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URL;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * The JDK's own server with a pool of 64 threads, each of which hands its call to a second pool, of
 * 16 threads, and waits for the future.
 */
public class Front {
    private static String back;
    private static int number;
    private static final ExecutorService callers = Executors.newFixedThreadPool(16);

    public static void main(String[] arguments) throws IOException {
        // Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
        System.setProperty("sun.net.httpserver.nodelay", "true");
        // The cache keeps 5 connections by default.
        System.setProperty("http.maxConnections", "16");
        back = "http://127.0.0.1:" + arguments[1];
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        var server = HttpServer.create(address, 512);
        server.setExecutor(Executors.newFixedThreadPool(64));
        server.createContext("/", Front::forward);
        server.start();
        Executors.newSingleThreadScheduledExecutor()
                .scheduleWithFixedDelay(Front::background, 0, 50, TimeUnit.MILLISECONDS);
    }

    private static byte[] ask(String path) {
        try {
            var call = (HttpURLConnection) new URL(back + path).openConnection();
            // Reading to the end gives the connection back to the cache.
            try (InputStream body = call.getInputStream()) {
                return body.readAllBytes();
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private static void forward(HttpExchange exchange) throws IOException {
        String path = exchange.getRequestURI().getPath();
        byte[] body = CompletableFuture.supplyAsync(() -> ask(path), callers).join();
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    /** Half of its calls in the pool of the requests, for which nobody waits. */
    private static void background() {
        String path = "/background/" + number++;
        if (number % 2 == 0) {
            callers.execute(() -> ask(path));
            return;
        }
        try {
            ask(path);
        } catch (UncheckedIOException error) {
            // An exception that leaves a scheduled task ends its repetition.
            System.err.println(error);
        }
    }
}
